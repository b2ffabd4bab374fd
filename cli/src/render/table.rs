//! Columns as Docker's tables have them: at least ten wide, three blanks apart.

/// Lays out lines of tab-separated cells; each column as wide as its widest cell, no blanks at line ends.
pub(crate) fn align(lines: &[String]) -> String {
    let rows: Vec<Vec<&str>> = lines.iter().map(|line| line.split('\t').collect()).collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        (cells.map(|cell| cell.chars().count()).max().unwrap_or(0) + 3).max(10)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(&format!("{cell:width$}"));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let lines = ["ID\tNAME\tX", "a\tthe-longest-name\t", "é\tb\tc"].map(String::from);
        assert_eq!(
            align(&lines),
            "ID        NAME               X\n\
             a         the-longest-name\n\
             é         b                  c\n"
        );
        assert_eq!(align(&[]), "");
    }
}
