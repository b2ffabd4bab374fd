//! Command blocks of a document: what a reader types, and what the document says comes out.
//!
//! A block is fenced as `console`. A line that begins with `# ` is typed (and goes on after a backslash); what follows is
//! its output. Ids, times and such differ from run to run: where the document has one, any other matches; a line `...`
//! stands for any lines. Invariant: every line of the block is either typed or compared.

use std::fmt::Write;

use regex::Regex;

/// One command and what it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// What is typed; may have several lines.
    pub command: String,
    /// What the document says comes out.
    pub output: Vec<String>,
}

/// One fenced block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// Where its fence is, from 1.
    pub line: usize,
    /// What follows the fence's backticks: `console`, `sh`, or nothing for a picture.
    pub language: String,
    /// All between the fences.
    pub text: String,
}

/// The fenced blocks of a document.
pub fn blocks(document: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut open: Option<Block> = None;
    for (number, line) in (1..).zip(document.lines()) {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(language)) => {
                let language = language.to_owned();
                open = Some(Block { line: number, language, text: String::new() });
            }
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some(block), None) => {
                block.text.push_str(line);
                block.text.push('\n');
            }
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a fence is never closed");
    blocks
}

impl Block {
    /// Its commands.
    pub fn steps(&self) -> Vec<Step> {
        let mut steps: Vec<Step> = Vec::new();
        let mut goes_on = false;
        for line in self.text.lines() {
            match (line.strip_prefix("# "), steps.last_mut()) {
                (_, Some(step)) if goes_on => {
                    step.command.push('\n');
                    step.command.push_str(line);
                }
                (Some(command), _) => {
                    steps.push(Step { command: command.to_owned(), output: Vec::new() });
                }
                (None, Some(step)) => step.output.push(line.to_owned()),
                (None, None) => panic!("line {}: a block begins with a command", self.line),
            }
            goes_on =
                steps.last().is_some_and(|step| step.output.is_empty() && line.ends_with('\\'));
        }
        steps
    }
}

impl Step {
    /// Whether that came out.
    pub fn is_said_by(&self, actual: &str) -> bool {
        let mut pattern = String::from(r"\A\s*");
        for line in &self.output {
            match line.as_str() {
                "..." => pattern.push_str(r"(?:.*\n)*?"),
                line => {
                    let _ = writeln!(pattern, "{}\\s*?", line_pattern(line));
                }
            }
        }
        pattern.push_str(r"\s*\z");
        let pattern = Regex::new(&pattern).expect("made of escaped parts");
        pattern.is_match(&format!("{}\n", actual.trim_end()))
    }
}

/// What may stand where the document has this.
const VARIES: &[(&str, &str)] = &[
    // A moment: RFC 3339, as `ls -l` has it, and in words.
    (r"\d{4}-\d\d-\d\dT[0-9:.]+Z", r"\d{4}-\d\d-\d\dT[0-9:.]+Z"),
    (r"[A-Z][a-z]{2} [ \d]\d \d\d:\d\d", r"[A-Z][a-z]{2} [ \d]\d \d\d:\d\d"),
    (
        r"(?i:less than a second|about a minute|\d+ seconds?|\d+ minutes?) ago",
        r"(?i:less than a second|about a minute|\d+ seconds?|\d+ minutes?) ago",
    ),
    // Ids, whole and short; the document's have a digit, others need not.
    (r"\bKHKEY-1-[0-9a-z]{56}\b", r"KHKEY-1-[0-9a-z]{56}"),
    (r"\bKH-1-[0-9a-z]{50}-[0-9a-z]{25}\b", r"KH-1-[0-9a-z]{50}-[0-9a-z]{25}"),
    (r"\b[0-9a-z]{25}\b", r"[0-9a-z]{25}"),
    (r"\b(?:[a-z]+[0-9]|[0-9]+[a-z])[0-9a-z]{4,10}\b", r"[0-9a-z]{12}"),
    // Counters and process ids in records.
    (r#""(?:index|Index|pid|seq|GrantID)": ?\d+"#, r#""(?:index|Index|pid|seq|GrantID)": ?\d+"#),
    // Hashes.
    (r"\b[0-9a-f]{64}\b", r"[0-9a-f]{64}"),
    (r"\b1\.\d+\b", r"1\.\d+"),
    // The second in which a cluster's history began again.
    (r"incarnation \d{10}\b", r"incarnation \d{10}"),
    // Columns are as wide as their widest cell.
    (r" {2,}", r" {2,}"),
];

fn line_pattern(line: &str) -> String {
    let all: Vec<String> = VARIES.iter().map(|(found, _)| format!("({found})")).collect();
    let found = Regex::new(&all.join("|")).expect("the patterns above");
    let mut pattern = String::new();
    let mut from = 0;
    for hit in found.captures_iter(line) {
        let whole = hit.get(0).expect("the match");
        let which = (1..hit.len()).find(|group| hit.get(*group).is_some());
        let which = which.expect("one alternative matched") - 1;
        // A short id has 12 characters; other words with digits are what they are.
        if VARIES[which].1 == r"[0-9a-z]{12}" && whole.len() != 12 {
            pattern.push_str(&regex::escape(&line[from..whole.end()]));
        } else {
            pattern.push_str(&regex::escape(&line[from..whole.start()]));
            pattern.push_str(VARIES[which].1);
        }
        from = whole.end();
    }
    pattern.push_str(&regex::escape(&line[from..]));
    pattern
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
Words.
```console
# one \\
    --more
first
  second
# two
```
```
a picture
```
";

    #[test]
    fn blocks_and_steps_are_found() {
        let blocks = blocks(TEXT);
        assert_eq!(
            blocks.iter().map(|b| (b.line, &*b.language)).collect::<Vec<_>>(),
            [(2, "console"), (9, "")]
        );
        let steps = blocks[0].steps();
        assert_eq!(steps[0].command, "one \\\n    --more");
        assert_eq!(steps[0].output, ["first", "  second"]);
        assert_eq!((&*steps[1].command, steps[1].output.len()), ("two", 0));
    }

    fn says(output: &[&str], actual: &str) -> bool {
        let output = output.iter().map(|line| (*line).to_owned()).collect();
        Step { command: String::new(), output }.is_said_by(actual)
    }

    #[test]
    fn what_varies_matches_and_nothing_else() {
        let row = "bkltjau2odsh7fzhpdzrytmm0   pw   1   Less than a second ago   2 seconds ago";
        assert!(says(
            &[row],
            "aaaaaaaaaaaaaaaaaaaaaaaaa  pw    1  4 seconds ago   About a minute ago\n"
        ));
        assert!(!says(
            &[row],
            "aaaaaaaaaaaaaaaaaaaaaaaaa  pw    2  4 seconds ago   About a minute ago\n"
        ));
        assert!(!says(&[row], &row.replace("   ", " ")), "a column is not a word");
        assert!(!says(&[row], &format!("{row}\n{row}\n")));
        assert!(!says(&[row], ""));
        assert!(says(&["36xxjlu10gfu   web"], "abcdefghijkl  web"));
        assert!(!says(&["36xxjlu10gfu   web"], "abcdefghijk  web"));
        assert!(says(&["node1 up", "...", "end"], "node1 up\na\nb\nend\n"));
        assert!(!says(&["node1 up", "...", "end"], "node2 up\na\nb\nend\n"));
        assert!(says(&[], "\n"));
        assert!(!says(&[], "something"));
    }
}
