//! `ls` and `ps`: rows in Docker's tables, or in the format that was asked for.

use super::datum::Datum;
use super::filter::Filter;
use super::template::Template;
use super::{printable, table};
use crate::failure::Failure;

/// The options that every list has.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct ListOptions {
    /// Print ids only
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Show what matches only: id=, name= (beginnings), names= (whole), label=KEY[=VALUE], ...
    #[arg(short, long = "filter", value_name = "KEY=VALUE")]
    pub(crate) filters: Vec<Filter>,
    /// Format with fields: 'json', 'table {{.ID}}\t{{.Name}}' or any text with {{.Name}}
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<String>,
}

/// What a kind of list looks like.
pub(crate) struct Columns {
    /// Each field with its heading; what `--format` may name.
    pub(crate) headings: &'static [(&'static str, &'static str)],
    /// The fields of the default table, in order.
    pub(crate) table: &'static [&'static str],
    /// The keys of `--filter`.
    pub(crate) filters: &'static [&'static str],
}

/// A list that is ready to be filled: its options are checked.
pub(crate) struct Listing {
    columns: &'static Columns,
    style: Style,
}

enum Style {
    Lines(Template),
    Table(Template),
    Json,
}

impl Listing {
    /// Checks the options, before anything is asked of anybody.
    pub(crate) fn new(columns: &'static Columns, options: &ListOptions) -> Result<Self, Failure> {
        Filter::check(&options.filters, columns.filters).map_err(Failure::usage)?;
        let parse = |format: &str| Template::parse(format).map_err(Failure::usage);
        let default = || {
            let fields: Vec<_> = columns.table.iter().map(|f| format!("{{{{.{f}}}}}")).collect();
            parse(&fields.join("\t"))
        };
        let style = match options.format.as_deref() {
            None if options.quiet => Style::Lines(parse("{{.ID}}")?),
            None | Some("table") => Style::Table(default()?),
            Some("json") => Style::Json,
            Some(format) => match format.strip_prefix("table ") {
                Some(_) if options.quiet => Style::Lines(parse("{{.ID}}")?),
                Some(format) => Style::Table(parse(format.trim())?),
                None => Style::Lines(parse(format)?),
            },
        };
        let listing = Self { columns, style };
        // Finds unknown fields also where no row will come.
        listing.heading()?;
        Ok(listing)
    }

    /// The text for these rows.
    pub(crate) fn show(&self, rows: &[Datum]) -> Result<String, Failure> {
        let each = |template: &Template| -> Result<Vec<String>, Failure> {
            let texts = rows.iter().map(|row| template.apply(row));
            texts.collect::<Result<_, _>>().map_err(Failure::usage)
        };
        Ok(match &self.style {
            Style::Json => rows.iter().map(|row| row.json() + "\n").collect(),
            Style::Lines(template) => each(template)?.into_iter().map(|t| t + "\n").collect(),
            Style::Table(template) => {
                let mut lines = self.heading()?;
                lines.extend(each(template)?);
                table::align(&lines)
            }
        })
    }

    fn heading(&self) -> Result<Vec<String>, Failure> {
        let template = match &self.style {
            Style::Json => return Ok(Vec::new()),
            Style::Lines(template) | Style::Table(template) => template,
        };
        let headings = self.columns.headings.iter();
        let row = Datum::Record(headings.map(|(f, heading)| (*f, (*heading).into())).collect());
        let line = template.apply_to_headings(&row).map_err(Failure::usage)?;
        Ok(vec![line])
    }
}

/// A cell: one line, nothing that moves a cursor.
pub(crate) fn cell(text: &str) -> Datum {
    Datum::Text(printable(text))
}

/// The first twelve characters of an id, as Docker shortens them, unless it was asked not to.
pub(crate) fn short(id: &str, whole: bool) -> &str {
    if whole { id } else { id.get(..12).unwrap_or(id) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    static COLUMNS: Columns = Columns {
        headings: &[("ID", "ID"), ("Name", "NAME"), ("CreatedAt", "CREATED"), ("Label", "")],
        table: &["ID", "Name", "CreatedAt"],
        filters: &["id", "name"],
    };

    fn show(format: Option<&str>, quiet: bool) -> Result<String, String> {
        let options = ListOptions { quiet, format: format.map(str::to_owned), filters: vec![] };
        let row = |id: &str, name: &str| {
            let labels = BTreeMap::from([("com.x.my_env".to_owned(), "prod".to_owned())]);
            Datum::Record(vec![
                ("ID", id.into()),
                ("Name", name.into()),
                ("CreatedAt", "2 minutes ago".into()),
                ("Label", Datum::Lookup(labels)),
            ])
        };
        let rows = [row("aaa", "one"), row("bbb", "two")];
        Listing::new(&COLUMNS, &options)
            .and_then(|listing| listing.show(&rows))
            .map_err(|failure| failure.to_string())
    }

    #[test]
    fn the_default_is_dockers_table() {
        assert_eq!(
            show(None, false).unwrap(),
            "ID        NAME      CREATED\n\
             aaa       one       2 minutes ago\n\
             bbb       two       2 minutes ago\n"
        );
        assert_eq!(show(Some("table"), false), show(None, false));
    }

    #[test]
    fn formats_of_lists() {
        assert_eq!(show(None, true).unwrap(), "aaa\nbbb\n");
        assert_eq!(show(Some("{{.Name}}!"), false).unwrap(), "one!\ntwo!\n");
        assert_eq!(
            show(Some("table {{upper .Name}}\\t{{.Label \"com.x.my_env\"}}"), false).unwrap(),
            "NAME      MY ENV\nONE       prod\nTWO       prod\n"
        );
        assert_eq!(
            show(Some("json"), false).unwrap().lines().next().unwrap(),
            r#"{"ID":"aaa","Name":"one","CreatedAt":"2 minutes ago"}"#
        );
    }

    #[test]
    fn unknown_fields_are_found_without_a_row() {
        let options =
            ListOptions { format: Some("{{.Value}}".to_owned()), ..ListOptions::default() };
        let error = Listing::new(&COLUMNS, &options).err().unwrap().to_string();
        assert!(error.contains("ID, Name, CreatedAt"), "{error}");
    }

    #[test]
    fn cells_cannot_drive_the_terminal() {
        assert_eq!(cell("a\x1b[2J\tb\n").to_string(), "a [2J b ");
    }
}
