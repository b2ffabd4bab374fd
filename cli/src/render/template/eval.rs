//! From nodes and a value to text.

use std::collections::BTreeMap;

use super::{Branch, Command, Function, Node, Operand, Pipeline, TemplateError};
use crate::render::datum::Datum;

/// What functions do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// Their work.
    Values,
    /// Nothing: headings stay as they are.
    Headings,
}

/// The text of `nodes` for `value`.
pub(super) fn apply(nodes: &[Node], value: &Datum, mode: Mode) -> Result<String, TemplateError> {
    let mut text = String::new();
    let scope = Scope { root: value, mode };
    scope.write(nodes, value, &mut text)?;
    Ok(text)
}

fn fail<T>(message: impl Into<String>) -> Result<T, TemplateError> {
    Err(TemplateError(message.into()))
}

struct Scope<'a> {
    root: &'a Datum,
    mode: Mode,
}

impl Scope<'_> {
    fn write(&self, nodes: &[Node], dot: &Datum, text: &mut String) -> Result<(), TemplateError> {
        for node in nodes {
            match node {
                Node::Text(plain) => text.push_str(plain),
                Node::Print(pipeline) => {
                    text.push_str(&self.pipeline(pipeline, dot)?.to_string());
                }
                Node::Branch { kind, on, then, otherwise } => {
                    let on = self.pipeline(on, dot)?;
                    match (kind, on.is_true()) {
                        (_, false) => self.write(otherwise, dot, text)?,
                        (Branch::If, true) => self.write(then, dot, text)?,
                        (Branch::With, true) => self.write(then, &on, text)?,
                        (Branch::Range, true) => self.range(then, &on, text)?,
                    }
                }
            }
        }
        Ok(())
    }

    fn range(&self, nodes: &[Node], over: &Datum, text: &mut String) -> Result<(), TemplateError> {
        match over {
            Datum::List(items) => items.iter().try_for_each(|i| self.write(nodes, i, text)),
            Datum::Map(map) => map.values().try_for_each(|i| self.write(nodes, i, text)),
            // Headings are texts whatever the values are.
            other if self.mode == Mode::Headings => self.write(nodes, other, text),
            other => fail(format!("range needs a list, not {}", kind(other))),
        }
    }

    fn pipeline(&self, pipeline: &Pipeline, dot: &Datum) -> Result<Datum, TemplateError> {
        let mut last = None;
        for command in &pipeline.0 {
            last = Some(self.command(command, dot, last)?);
        }
        Ok(last.unwrap_or(Datum::Null))
    }

    fn command(
        &self,
        command: &Command,
        dot: &Datum,
        piped: Option<Datum>,
    ) -> Result<Datum, TemplateError> {
        let Some((first, rest)) = command.0.split_first() else {
            return Ok(Datum::Null);
        };
        let mut arguments = Vec::new();
        for operand in rest {
            arguments.push(self.operand(operand, dot)?);
        }
        arguments.extend(piped);
        if let Operand::Function(function) = first {
            return match self.mode {
                Mode::Values => call(*function, &arguments),
                Mode::Headings => Ok(heading(rest, arguments)),
            };
        }
        let value = self.operand(first, dot)?;
        match (value, arguments.as_slice()) {
            (Datum::Lookup(texts), [Datum::Text(key)]) => Ok(looked_up(&texts, key)),
            (Datum::Lookup(_), _) => fail("this field takes one argument: {{.Label \"key\"}}"),
            (value, []) => Ok(value),
            // A heading of a field that takes an argument is the argument.
            (_, [argument]) if self.mode == Mode::Headings => Ok(label_heading(argument)),
            (value, _) => fail(format!("{} takes no argument", kind(&value))),
        }
    }

    fn operand(&self, operand: &Operand, dot: &Datum) -> Result<Datum, TemplateError> {
        match operand {
            Operand::Field { root: true, path } => self.follow(self.root, path),
            Operand::Field { root: false, path } => self.follow(dot, path),
            Operand::Group { pipeline, path } => self.follow(&self.pipeline(pipeline, dot)?, path),
            Operand::Literal(value) => Ok(value.clone()),
            Operand::Function(function) => match self.mode {
                Mode::Values => call(*function, &[]),
                Mode::Headings => Ok(Datum::Null),
            },
        }
    }

    fn follow(&self, from: &Datum, path: &[String]) -> Result<Datum, TemplateError> {
        let mut value = from;
        for name in path {
            value = match value {
                Datum::Record(fields) => match fields.iter().find(|(field, _)| field == name) {
                    Some((_, value)) => value,
                    None => return unknown_field(name, fields),
                },
                Datum::Map(map) => map.get(name).unwrap_or(&Datum::Null),
                Datum::Null => &Datum::Null,
                heading @ Datum::Text(_) if self.mode == Mode::Headings => heading,
                other => return fail(format!("{} has no field {name:?}", kind(other))),
            };
        }
        Ok(value.clone())
    }
}

fn unknown_field(name: &str, fields: &[(&'static str, Datum)]) -> Result<Datum, TemplateError> {
    let known: Vec<_> = fields.iter().map(|(field, _)| *field).collect();
    fail(format!("field {name:?} is unknown; known here are {}", known.join(", ")))
}

fn looked_up(texts: &BTreeMap<String, String>, key: &str) -> Datum {
    Datum::Text(texts.get(key).cloned().unwrap_or_default())
}

/// `com.example.some_key` is headed SOME KEY, as Docker does it.
fn label_heading(argument: &Datum) -> Datum {
    let text = argument.to_string();
    let last = text.rsplit('.').next().unwrap_or_default();
    Datum::Text(last.replace(['-', '_'], " ").to_uppercase())
}

/// The heading that a function was given; literals are its options.
fn heading(operands: &[Operand], arguments: Vec<Datum>) -> Datum {
    let literal = |at: usize| matches!(operands.get(at), Some(Operand::Literal(_)));
    let mut named = arguments.into_iter().enumerate().filter(|(at, _)| !literal(*at));
    named.next().map_or(Datum::Null, |(_, heading)| heading)
}

fn kind(value: &Datum) -> &'static str {
    match value {
        Datum::Null => "nothing",
        Datum::Bool(_) => "true or false",
        Datum::Number(_) => "a number",
        Datum::Text(_) => "a text",
        Datum::List(_) => "a list",
        Datum::Map(_) => "a map",
        Datum::Record(_) => "an object",
        Datum::Lookup(_) => "a field that takes a key",
    }
}

fn call(function: Function, arguments: &[Datum]) -> Result<Datum, TemplateError> {
    let text = |value: &Datum| value.to_string();
    let value = match (function, arguments) {
        (Function::Json, [value]) => Datum::Text(value.json()),
        (Function::Upper, [value]) => Datum::Text(text(value).to_uppercase()),
        (Function::Lower, [value]) => Datum::Text(text(value).to_lowercase()),
        (Function::Title, [value]) => Datum::Text(title(&text(value))),
        (Function::Join, [Datum::List(items), Datum::Text(between)]) => {
            let items: Vec<_> = items.iter().map(text).collect();
            Datum::Text(items.join(between))
        }
        (Function::Split, [Datum::Text(whole), Datum::Text(at)]) => {
            Datum::List(whole.split(at.as_str()).map(Datum::from).collect())
        }
        (Function::Println, values) => {
            let values: Vec<_> = values.iter().map(text).collect();
            Datum::Text(values.join(" ") + "\n")
        }
        (Function::Len, [value]) => length(value)?,
        (Function::Index, [value, keys @ ..]) => index(value, keys)?,
        (Function::Eq, [first, others @ ..]) if !others.is_empty() => {
            Datum::Bool(others.contains(first))
        }
        (Function::Ne, [a, b]) => Datum::Bool(a != b),
        (Function::Not, [value]) => Datum::Bool(!value.is_true()),
        (Function::And, [.., last]) => {
            arguments.iter().find(|value| !value.is_true()).unwrap_or(last).clone()
        }
        (Function::Or, [.., last]) => {
            arguments.iter().find(|value| value.is_true()).unwrap_or(last).clone()
        }
        (Function::Pad, [value, Datum::Number(left), Datum::Number(right)]) => {
            Datum::Text(pad(&text(value), *left, *right))
        }
        (Function::Truncate, [value, Datum::Number(length)]) => {
            let length = usize::try_from(*length).unwrap_or(usize::MAX);
            Datum::Text(text(value).chars().take(length).collect())
        }
        _ => return misuse(function, arguments),
    };
    Ok(value)
}

fn misuse(function: Function, arguments: &[Datum]) -> Result<Datum, TemplateError> {
    let name = Function::NAMES.iter().find(|(_, f)| *f == function).map_or("?", |(name, _)| *name);
    let given: Vec<_> = arguments.iter().map(kind).collect();
    fail(format!("{name} cannot take ({})", given.join(", ")))
}

fn title(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next();
    first.into_iter().flat_map(char::to_uppercase).chain(chars).collect()
}

fn pad(text: &str, left: u64, right: u64) -> String {
    // More blanks than a line has are a mistake, not a wish.
    let blanks = |n: u64| " ".repeat(usize::try_from(n.min(1_000)).unwrap_or(0));
    format!("{}{text}{}", blanks(left), blanks(right))
}

fn length(value: &Datum) -> Result<Datum, TemplateError> {
    let length = match value {
        Datum::Text(text) => text.len(),
        Datum::List(items) => items.len(),
        Datum::Map(map) => map.len(),
        other => return misuse(Function::Len, std::slice::from_ref(other)),
    };
    Ok(Datum::Number(length as u64))
}

fn index(value: &Datum, keys: &[Datum]) -> Result<Datum, TemplateError> {
    let mut value = value.clone();
    for key in keys {
        value = match (&value, key) {
            (Datum::List(items), Datum::Number(at)) => {
                let found = usize::try_from(*at).ok().and_then(|at| items.get(at));
                match found {
                    Some(item) => item.clone(),
                    None => {
                        return fail(format!("index {at} is beyond a list of {}", items.len()));
                    }
                }
            }
            (Datum::Map(map), Datum::Text(key)) => map.get(key).cloned().unwrap_or(Datum::Null),
            (value, key) => return misuse(Function::Index, &[value.clone(), key.clone()]),
        };
    }
    Ok(value)
}
