//! From the text of a format to its nodes.

use super::{Branch, Command, Function, Node, Operand, Pipeline, TemplateError};
use crate::render::datum::Datum;

/// How deep blocks and parentheses may nest.
const MAX_DEPTH: usize = 64;

fn fail<T>(message: impl Into<String>) -> Result<T, TemplateError> {
    Err(TemplateError(message.into()))
}

/// The nodes of a whole format.
pub(super) fn template(format: &str) -> Result<Vec<Node>, TemplateError> {
    let mut parser = Blocks { pieces: pieces(format)?.into_iter(), depth: 0 };
    match parser.nodes()? {
        (nodes, Stop::Finished) => Ok(nodes),
        (_, Stop::End) => fail("{{end}} without a block to end"),
        (_, Stop::Else) => fail("{{else}} without a block around it"),
    }
}

/// A format cut at its braces.
enum Piece {
    Text(String),
    Action(String),
}

fn pieces(format: &str) -> Result<Vec<Piece>, TemplateError> {
    let mut found = Vec::new();
    let mut rest = format;
    let mut trim_next = false;
    while let Some(at) = rest.find("{{") {
        let (mut text, after) = (&rest[..at], &rest[at + 2..]);
        if trim_next {
            text = text.trim_start();
        }
        let trims_before =
            after.strip_prefix('-').is_some_and(|a| a.starts_with(char::is_whitespace));
        if trims_before {
            text = text.trim_end();
        }
        found.push(Piece::Text(text.to_owned()));
        let end = action_end(after)?;
        let mut action = &after[usize::from(trims_before)..end];
        trim_next =
            action.ends_with('-') && action[..action.len() - 1].ends_with(char::is_whitespace);
        if trim_next {
            action = &action[..action.len() - 1];
        }
        let action = action.trim();
        if !(action.starts_with("/*") && action.ends_with("*/")) {
            found.push(Piece::Action(action.to_owned()));
        }
        rest = &after[end + 2..];
    }
    let text = if trim_next { rest.trim_start() } else { rest };
    found.push(Piece::Text(text.to_owned()));
    Ok(found)
}

/// Where the closing braces are, not counting those in quotes.
fn action_end(text: &str) -> Result<usize, TemplateError> {
    let mut quote = None;
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match quote {
            Some(_) if escaped => escaped = false,
            Some('"') if c == '\\' => escaped = true,
            Some(open) if c == open => quote = None,
            Some(_) => {}
            None if c == '"' || c == '`' => quote = Some(c),
            None if text[at..].starts_with("}}") => return Ok(at),
            None => {}
        }
    }
    match quote {
        Some(_) => fail("a quote is not closed"),
        None => fail("'{{' is not closed; write for example {{.Name}}"),
    }
}

enum Stop {
    Finished,
    End,
    Else,
}

struct Blocks {
    pieces: std::vec::IntoIter<Piece>,
    depth: usize,
}

impl Blocks {
    fn nodes(&mut self) -> Result<(Vec<Node>, Stop), TemplateError> {
        let mut nodes = Vec::new();
        while let Some(piece) = self.pieces.next() {
            match piece {
                Piece::Text(text) if text.is_empty() => {}
                Piece::Text(text) => nodes.push(Node::Text(text)),
                Piece::Action(action) => {
                    let (word, rest) =
                        action.split_once(char::is_whitespace).unwrap_or((action.as_str(), ""));
                    match word {
                        "end" => return Ok((nodes, Stop::End)),
                        "else" if rest.is_empty() => return Ok((nodes, Stop::Else)),
                        "else" => return fail("{{else}} stands alone; put an {{if}} after it"),
                        "if" => nodes.push(self.block(Branch::If, rest)?),
                        "range" => nodes.push(self.block(Branch::Range, rest)?),
                        "with" => nodes.push(self.block(Branch::With, rest)?),
                        _ => nodes.push(Node::Print(pipeline(&action)?)),
                    }
                }
            }
        }
        Ok((nodes, Stop::Finished))
    }

    fn block(&mut self, kind: Branch, on: &str) -> Result<Node, TemplateError> {
        let on = pipeline(on)?;
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return fail(format!("blocks are nested more than {MAX_DEPTH} deep"));
        }
        let (then, stop) = self.nodes()?;
        let (otherwise, stop) = match stop {
            Stop::Else => self.nodes()?,
            other => (Vec::new(), other),
        };
        self.depth -= 1;
        match stop {
            Stop::End => Ok(Node::Branch { kind, on, then, otherwise }),
            Stop::Else => fail("a second {{else}} in one block"),
            Stop::Finished => fail("a block is not closed; {{end}} is missing"),
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Word(String),
    Path(Vec<String>),
    Dollar,
    Literal(Datum),
    Pipe,
    Open,
    Close,
}

fn pipeline(text: &str) -> Result<Pipeline, TemplateError> {
    let mut tokens = Tokens { list: tokens(text)?.into_iter().peekable(), depth: 0 };
    let pipeline = tokens.pipeline()?;
    match tokens.list.next() {
        None => Ok(pipeline),
        Some(_) => fail(format!("')' without '(' in {{{{{text}}}}}")),
    }
}

struct Tokens {
    list: std::iter::Peekable<std::vec::IntoIter<(Token, bool)>>,
    depth: usize,
}

impl Tokens {
    fn pipeline(&mut self) -> Result<Pipeline, TemplateError> {
        let mut commands = vec![self.command()?];
        while self.list.next_if(|(t, _)| *t == Token::Pipe).is_some() {
            commands.push(self.command()?);
        }
        Ok(Pipeline(commands))
    }

    fn command(&mut self) -> Result<Command, TemplateError> {
        let mut operands = Vec::new();
        while let Some((token, _)) =
            self.list.next_if(|(t, _)| !matches!(t, Token::Pipe | Token::Close))
        {
            operands.push(self.operand(token)?);
        }
        if operands.is_empty() {
            return fail("an empty action, or nothing beside a '|'; write for example {{.Name}}");
        }
        Ok(Command(operands))
    }

    fn operand(&mut self, token: Token) -> Result<Operand, TemplateError> {
        Ok(match token {
            Token::Path(path) => Operand::Field { root: false, path },
            Token::Dollar => Operand::Field { root: true, path: self.joined_path() },
            Token::Literal(value) => Operand::Literal(value),
            Token::Open => {
                self.depth += 1;
                if self.depth > MAX_DEPTH {
                    return fail(format!("parentheses are nested more than {MAX_DEPTH} deep"));
                }
                let pipeline = self.pipeline()?;
                if self.list.next_if(|(t, _)| *t == Token::Close).is_none() {
                    return fail("'(' without ')'");
                }
                self.depth -= 1;
                Operand::Group { pipeline, path: self.joined_path() }
            }
            Token::Word(word) => word_operand(&word)?,
            Token::Pipe | Token::Close => return fail("'|' or ')' where a value should be"),
        })
    }

    /// A path that follows without a blank between.
    fn joined_path(&mut self) -> Vec<String> {
        let joined = |(token, joined): &(Token, bool)| *joined && matches!(token, Token::Path(_));
        match self.list.next_if(joined) {
            Some((Token::Path(path), _)) => path,
            _ => Vec::new(),
        }
    }
}

fn word_operand(word: &str) -> Result<Operand, TemplateError> {
    let constant = match word {
        "true" => Some(Datum::Bool(true)),
        "false" => Some(Datum::Bool(false)),
        "nil" => Some(Datum::Null),
        _ => word.parse().ok().map(Datum::Number),
    };
    if let Some(constant) = constant {
        return Ok(Operand::Literal(constant));
    }
    match Function::NAMES.iter().find(|(name, _)| *name == word) {
        Some((_, function)) => Ok(Operand::Function(*function)),
        None => {
            let known: Vec<_> = Function::NAMES.iter().map(|(name, _)| *name).collect();
            fail(format!(
                "function {word:?} is unknown; known are {} (a field begins with a dot: {{{{.Name}}}})",
                known.join(", ")
            ))
        }
    }
}

/// The tokens, each with whether it follows the one before without a blank.
fn tokens(text: &str) -> Result<Vec<(Token, bool)>, TemplateError> {
    let mut found = Vec::new();
    let mut rest = text;
    let mut joined = false;
    while let Some(c) = rest.chars().next() {
        if c.is_whitespace() {
            rest = &rest[c.len_utf8()..];
            joined = false;
            continue;
        }
        let (token, length) = token(rest, c)?;
        found.push((token, joined));
        rest = &rest[length..];
        joined = true;
    }
    Ok(found)
}

fn token(rest: &str, first: char) -> Result<(Token, usize), TemplateError> {
    let word_end = |from: usize, dots: bool| {
        rest[from..]
            .find(|c: char| !(c.is_alphanumeric() || c == '_' || (dots && c == '.')))
            .map_or(rest.len(), |at| from + at)
    };
    match first {
        '|' => Ok((Token::Pipe, 1)),
        '(' => Ok((Token::Open, 1)),
        ')' => Ok((Token::Close, 1)),
        '$' => Ok((Token::Dollar, 1)),
        '.' => {
            let end = word_end(1, true);
            let path: Vec<String> = match &rest[1..end] {
                "" => Vec::new(),
                path => path.split('.').map(str::to_owned).collect(),
            };
            if path.iter().any(String::is_empty) {
                return fail(format!("{:?} is no field", &rest[..end]));
            }
            Ok((Token::Path(path), end))
        }
        '"' => quoted(rest),
        '`' => match rest[1..].find('`') {
            Some(end) => Ok((Token::Literal(Datum::from(&rest[1..=end])), end + 2)),
            None => fail("a quote is not closed"),
        },
        c if c.is_alphanumeric() || c == '_' => {
            let end = word_end(0, false);
            Ok((Token::Word(rest[..end].to_owned()), end))
        }
        c => fail(format!("unexpected {c:?} in {{{{{rest}}}}}")),
    }
}

fn quoted(rest: &str) -> Result<(Token, usize), TemplateError> {
    let mut text = String::new();
    let mut chars = rest.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Ok((Token::Literal(Datum::Text(text)), at + 1)),
            '\\' => match chars.next() {
                Some((_, 'n')) => text.push('\n'),
                Some((_, 't')) => text.push('\t'),
                Some((_, c @ ('"' | '\\'))) => text.push(c),
                _ => return fail("only \\n, \\t, \\\" and \\\\ may follow a backslash in quotes"),
            },
            c => text.push(c),
        }
    }
    fail("a quote is not closed")
}
