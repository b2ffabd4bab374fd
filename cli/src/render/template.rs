//! Go-style templates for `--format`: fields, pipelines, `range`, `if`, `with`, and Docker's functions.
//!
//! A template is parsed once, before anything is asked of a manager, and can then be applied to any
//! [`Datum`]. Unknown functions and fields are errors that name the known ones.

mod eval;
mod parse;

use super::datum::Datum;

/// A parsed template.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Template {
    nodes: Vec<Node>,
}

/// What a template is made of.
#[derive(Debug, Clone, PartialEq)]
enum Node {
    Text(String),
    Print(Pipeline),
    Branch { kind: Branch, on: Pipeline, then: Vec<Node>, otherwise: Vec<Node> },
}

/// The blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Branch {
    If,
    Range,
    With,
}

/// Commands joined by `|`; each takes the value before it as its last argument.
#[derive(Debug, Clone, PartialEq)]
struct Pipeline(Vec<Command>);

/// Operands; the first may be a function.
#[derive(Debug, Clone, PartialEq)]
struct Command(Vec<Operand>);

#[derive(Debug, Clone, PartialEq)]
enum Operand {
    /// A path from the value at hand (`.A.B`) or from the outermost one (`$.A`).
    Field {
        root: bool,
        path: Vec<String>,
    },
    /// A path from another operand: `(index .X 0).Name`.
    Group {
        pipeline: Pipeline,
        path: Vec<String>,
    },
    Function(Function),
    Literal(Datum),
}

/// The functions there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Function {
    Json,
    Upper,
    Lower,
    Title,
    Join,
    Split,
    Println,
    Len,
    Index,
    Eq,
    Ne,
    Not,
    And,
    Or,
    Pad,
    Truncate,
}

impl Function {
    const NAMES: [(&'static str, Self); 16] = [
        ("json", Self::Json),
        ("upper", Self::Upper),
        ("lower", Self::Lower),
        ("title", Self::Title),
        ("join", Self::Join),
        ("split", Self::Split),
        ("println", Self::Println),
        ("len", Self::Len),
        ("index", Self::Index),
        ("eq", Self::Eq),
        ("ne", Self::Ne),
        ("not", Self::Not),
        ("and", Self::And),
        ("or", Self::Or),
        ("pad", Self::Pad),
        ("truncate", Self::Truncate),
    ];
}

/// Why a template cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TemplateError(String);

impl std::fmt::Display for TemplateError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "--format: {}", self.0)
    }
}

impl Template {
    /// Parses a format; `\t` and `\n` may be written as two characters, as in Docker's.
    pub(crate) fn parse(format: &str) -> Result<Self, TemplateError> {
        let format = format.replace("\\t", "\t").replace("\\n", "\n");
        parse::template(&format).map(|nodes| Self { nodes })
    }

    /// The text for `value`.
    pub(crate) fn apply(&self, value: &Datum) -> Result<String, TemplateError> {
        eval::apply(&self.nodes, value, eval::Mode::Values)
    }

    /// The text for a row of headings: functions leave them as they are.
    pub(crate) fn apply_to_headings(&self, headings: &Datum) -> Result<String, TemplateError> {
        eval::apply(&self.nodes, headings, eval::Mode::Headings)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn sample() -> Datum {
        let labels = BTreeMap::from([("env".to_owned(), Datum::from("prod"))]);
        let version = |n: u64, current: bool| {
            Datum::Record(vec![("Version", n.into()), ("Current", current.into())])
        };
        Datum::Record(vec![
            ("ID", "abc".into()),
            (
                "Spec",
                Datum::Record(vec![("Name", "Db_Password".into()), ("Labels", Datum::Map(labels))]),
            ),
            ("Services", Datum::texts(&["web".into(), "api".into()])),
            ("Versions", Datum::List(vec![version(1, false), version(2, true)])),
            ("PreviousSpec", Datum::Null),
            ("Label", Datum::Lookup(BTreeMap::from([("env".to_owned(), "prod".to_owned())]))),
        ])
    }

    fn apply(format: &str) -> Result<String, String> {
        Template::parse(format)
            .and_then(|template| template.apply(&sample()))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn formats_that_docker_users_write() {
        for (format, text) in [
            ("", ""),
            ("plain", "plain"),
            ("{{.ID}}", "abc"),
            ("{{ .ID }}\\t{{.Spec.Name}}", "abc\tDb_Password"),
            ("{{json .Spec.Labels}}", r#"{"env":"prod"}"#),
            ("{{json .Spec.Name}}", r#""Db_Password""#),
            ("{{upper .Spec.Name}}", "DB_PASSWORD"),
            ("{{.Spec.Name | lower}}", "db_password"),
            ("{{lower .Spec.Name | json}}", r#""db_password""#),
            ("{{join .Services \", \"}}", "web, api"),
            ("{{.Services}}", "[web api]"),
            ("{{len .Services}}", "2"),
            ("{{index .Services 1}}", "api"),
            ("{{index .Spec.Labels \"env\"}}", "prod"),
            ("{{.Spec.Labels.env}}", "prod"),
            ("{{.Spec.Labels.none}}", "<no value>"),
            ("{{.PreviousSpec.Name}}", "<no value>"),
            ("{{.Label \"env\"}}{{.Label \"none\"}}", "prod"),
            ("{{range .Versions}}{{.Version}}{{if .Current}}*{{end}} {{end}}", "1 2* "),
            (
                "{{range .Versions}}{{if .Current}}now{{else}}old{{end}} {{$.ID}};{{end}}",
                "old abc;now abc;",
            ),
            ("{{with .Spec}}{{.Name}}{{end}}", "Db_Password"),
            ("{{if .PreviousSpec}}yes{{else}}no{{end}}", "no"),
            ("{{range .PreviousSpec}}x{{else}}none{{end}}", "none"),
            ("{{if eq .ID \"abc\"}}same{{end}}", "same"),
            ("{{(index .Versions 1).Version}}", "2"),
            ("a  {{- .ID -}}  b", "aabcb"),
            ("{{/* nothing */}}{{.ID}}", "abc"),
            ("{{pad .ID 1 2}}|{{truncate .ID 2}}", " abc  |ab"),
            ("{{title \"hello\"}}{{println .ID}}", "Helloabc\n"),
            ("{{range split \"a,b\" \",\"}}<{{.}}>{{end}}", "<a><b>"),
            ("{{and .ID .PreviousSpec}}{{not .ID}}", "<no value>false"),
        ] {
            assert_eq!(apply(format).as_deref(), Ok(text), "{format}");
        }
    }

    #[test]
    fn mistakes_name_what_is_known() {
        for (format, word) in [
            ("{{.Name}}", "ID, Spec, Services, Versions, PreviousSpec"),
            ("{{.Spec.Value}}", "Name, Labels"),
            ("{{shout .ID}}", "json, upper, lower"),
            ("{{.ID", "not closed"),
            ("{{range .Services}}", "{{end}}"),
            ("{{end}}", "{{end}}"),
            ("{{else}}", "{{else}}"),
            ("{{}}", "empty"),
            ("{{.ID.Deeper}}", "Deeper"),
            ("{{join .ID \",\"}}", "join"),
            ("{{index .Services 9}}", "9"),
            ("{{\"open}}", "quote"),
            ("{{range .ID}}{{end}}", "range"),
            ("{{.ID \"argument\"}}", "argument"),
            ("{{(.ID}}", ")"),
            ("{{.ID | }}", "|"),
        ] {
            let error = apply(format).unwrap_err();
            assert!(error.contains(word), "{format}: {error}");
            assert!(error.starts_with("--format: "), "{error}");
        }
    }

    #[test]
    fn deep_nesting_is_refused_and_not_a_crash() {
        let groups = format!("{{{{{}}}}}", "(".repeat(100_000));
        assert!(apply(&groups).unwrap_err().contains("nested"));
        let blocks = "{{if .ID}}".repeat(100_000);
        assert!(apply(&blocks).unwrap_err().contains("nested"));
    }
}
