# Completion of keyhole for bash; put it into effect with: source <(keyhole completion bash)
_keyhole() {
    local line=$COMP_LINE words=() index=0 at word
    for ((at = 0; at < ${#COMP_WORDS[@]}; at++)); do
        word=${COMP_WORDS[at]}
        # Bash parts words at = and : too; what has no blank in between is one word to us.
        if ((at > 0)) && [[ $line != [[:space:]]* ]]; then
            words[${#words[@]} - 1]+=$word
        else
            words+=("$word")
        fi
        line=${line#"${line%%[![:space:]]*}"}
        line=${line#"$word"}
        ((at == COMP_CWORD)) && index=$((${#words[@]} - 1))
    done
    mapfile -t COMPREPLY < <(
        KEYHOLE_COMPLETE=bash _CLAP_IFS=$'\n' _CLAP_COMPLETE_INDEX=$index \
            "$1" -- "${words[@]}" 2>/dev/null
    )
    # Bash puts a reply in the place of what follows the last = or : only.
    local current=${words[index]} head=
    [[ $current == *[=:]* ]] && head=${current%"${current##*[=:]}"}
    COMPREPLY=("${COMPREPLY[@]#"$head"}")
    if ((${#COMPREPLY[@]} == 1)) && [[ ${COMPREPLY[0]} == *[=/] ]]; then
        compopt -o nospace 2>/dev/null || :
    fi
}
complete -o bashdefault -o default -F _keyhole keyhole
