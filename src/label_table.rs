//! Names and colours of labels, in the files that programs for looking at scans have for them: ITK-SNAP's label descriptions and
//! 3D Slicer's colour tables.

use std::path::{Path, PathBuf};

use crate::dataset::Label;
use crate::file::write_beside;
use crate::picture;

/// Why a table can't be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TableError {
    /// The operating system refused.
    #[error("{}: {reason}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: std::io::Error,
    },
    /// The content, or what was to be written, is not what it must be.
    #[error("{}: {problem}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

/// A label with the colour that it is shown in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its value and name.
    pub label: Label,
    /// Red, green and blue.
    pub colour: [u8; 3],
}

/// Whose file it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// `.txt`, `.label`: index, red, green, blue, opacity, two switches and the name in quotes.
    ItkSnap,
    /// `.ctbl`: index, name without spaces, red, green, blue, opacity of 255.
    Slicer,
}

/// The largest value that ITK-SNAP has labels for.
const MOST: i32 = u16::MAX as i32;
/// Bytes of a file that are read.
const MOST_BYTES: u64 = 64 << 20;

impl Program {
    /// The program whose ending a name has.
    ///
    /// # Errors
    /// The endings there are.
    pub fn of(path: &Path) -> Result<Program, String> {
        let ending = path.extension().map(|e| e.to_ascii_lowercase());
        match ending.as_ref().and_then(|e| e.to_str()) {
            Some("txt" | "label") => Ok(Program::ItkSnap),
            Some("ctbl") => Ok(Program::Slicer),
            _ => Err("the name must end in .txt or .label (ITK-SNAP) or .ctbl (3D Slicer)".into()),
        }
    }
}

/// Labels in the colours that pictures have; the background, value 0, is black.
pub fn coloured(labels: &[Label]) -> Vec<Entry> {
    let entry = |(index, label): (usize, &Label)| Entry {
        label: label.clone(),
        colour: match label.value {
            0 => [0; 3],
            _ => picture::label_colour(index),
        },
    };
    labels.iter().enumerate().map(entry).collect()
}

/// The text of a table.
///
/// # Errors
/// Values that the programs have no labels for.
pub fn text(entries: &[Entry], program: Program) -> Result<String, String> {
    let impossible = entries.iter().find(|e| !(0..=MOST).contains(&e.label.value));
    if let Some(Entry { label, .. }) = impossible {
        return Err(format!(
            "the label {} has the value {}, and tables have values from 0 to {MOST}",
            label.name, label.value
        ));
    }
    let mut entries: Vec<&Entry> = entries.iter().collect();
    entries.sort_by_key(|entry| entry.label.value);
    let line = |entry: &&Entry| {
        let Entry {
            label,
            colour: [r, g, b],
        } = entry;
        let shown = i32::from(label.value != 0);
        match program {
            Program::ItkSnap => {
                let name = match label.value {
                    0 => "Clear Label".to_owned(), // as ITK-SNAP wants it
                    _ => label.name.replace('"', "'"),
                };
                format!(
                    "{:5} {r:5} {g:4} {b:4} {shown:8} {shown:2} {shown:2}    \"{name}\"\n",
                    label.value
                )
            }
            Program::Slicer => {
                let name: Vec<&str> = label.name.split_whitespace().collect();
                let name = if name.is_empty() {
                    "_".to_owned()
                } else {
                    name.join("_")
                };
                format!("{} {name} {r} {g} {b} {}\n", label.value, 255 * shown)
            }
        }
    };
    let lines: String = entries.iter().map(line).collect();
    let head = match program {
        Program::ItkSnap => ITK_SNAP.to_owned(),
        Program::Slicer => format!("# Color table file\n# {} values\n", entries.len()),
    };
    Ok(head + &lines)
}

/// What ITK-SNAP's files begin with.
const ITK_SNAP: &str = "################################################
# ITK-SnAP Label Description File
# File format: 
# IDX   -R-  -G-  -B-  -A--  VIS MSH  LABEL
# Fields: 
#    IDX:   Zero-based index 
#    -R-:   Red color component (0..255)
#    -G-:   Green color component (0..255)
#    -B-:   Blue color component (0..255)
#    -A-:   Label transparency (0.00 .. 1.00)
#    VIS:   Label visibility (0 or 1)
#    IDX:   Label mesh visibility (0 or 1)
#  LABEL:   Label description 
################################################
";

/// Writes the labels' table beside its place and renames it; the ending says whose it is.
///
/// # Errors
/// Another ending, values that tables don't have, a file that exists (without `force`) or can't be written.
pub fn write(path: &Path, entries: &[Entry], force: bool) -> Result<(), TableError> {
    let format = |problem| TableError::Format {
        path: path.into(),
        problem,
    };
    let text = text(entries, Program::of(path).map_err(format)?).map_err(format)?;
    write_beside(path, text.as_bytes(), force).map_err(|reason| TableError::Io {
        path: path.into(),
        reason,
    })
}

/// Reads a table of either program.
///
/// # Errors
/// A file that can't be read, and lines that are no entry.
pub fn read(path: &Path) -> Result<Vec<Entry>, TableError> {
    let format = |problem| TableError::Format {
        path: path.into(),
        problem,
    };
    let io = |reason| TableError::Io {
        path: path.into(),
        reason,
    };
    let program = Program::of(path).map_err(format)?;
    let bytes = std::fs::metadata(path).map_err(io)?.len();
    if bytes > MOST_BYTES {
        return Err(format(format!(
            "{bytes} bytes are too many for a table of labels"
        )));
    }
    let bytes = std::fs::read(path).map_err(io)?;
    parse(&String::from_utf8_lossy(&bytes), program).map_err(format)
}

/// The entries of a table's text, by ascending value.
///
/// # Errors
/// A line that is no entry, values and names that are there twice.
pub fn parse(text: &str, program: Program) -> Result<Vec<Entry>, String> {
    let mut entries = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let wrong = || format!("line {number}, `{}`, is no label", line.escape_debug());
        entries.push(match program {
            Program::ItkSnap => itk_snap(line).ok_or_else(wrong)?,
            Program::Slicer => slicer(line).ok_or_else(wrong)?,
        });
    }
    entries.sort_by_key(|entry| entry.label.value);
    for pair in entries.windows(2) {
        let [one, other] = [&pair[0].label, &pair[1].label];
        if one.value == other.value {
            return Err(format!(
                "the labels {} and {} have one value, {}",
                one.name, other.name, one.value
            ));
        }
    }
    match entries.is_empty() {
        true => Err("it has no label".into()),
        false => Ok(entries),
    }
}

/// `IDX R G B A VIS MSH "NAME"`.
fn itk_snap(line: &str) -> Option<Entry> {
    let (numbers, name) = line.split_once('"')?;
    let (name, _) = name.rsplit_once('"')?;
    let numbers: Vec<&str> = numbers.split_whitespace().collect();
    let [value, r, g, b, _opacity, _visible, _mesh] = numbers[..] else {
        return None;
    };
    entry(value, name, [r, g, b])
}

/// `INDEX NAME R G B A`; the name's underscores are spaces.
fn slicer(line: &str) -> Option<Entry> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [value, name, r, g, b, _opacity] = words[..] else {
        return None;
    };
    entry(value, &name.replace('_', " "), [r, g, b])
}

fn entry(value: &str, name: &str, colour: [&str; 3]) -> Option<Entry> {
    let value = value.parse().ok().filter(|value| (0..=MOST).contains(value))?;
    let [r, g, b] = colour.map(|c| c.parse().ok());
    let name = name.to_owned();
    (!name.chars().any(char::is_control)).then_some(Entry {
        label: Label { value, name },
        colour: [r?, g?, b?],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label(value: i32, name: &str) -> Label {
        Label {
            value,
            name: name.into(),
        }
    }

    #[test]
    fn tables_are_read_as_they_are_written() {
        let labels = [
            label(0, "background"),
            label(7, "left kidney"),
            label(3, "a \"b\""),
        ];
        let entries = coloured(&labels);
        assert_eq!(entries[0].colour, [0; 3]);
        assert_ne!(entries[1].colour, entries[2].colour);
        let snap = text(&entries, Program::ItkSnap).unwrap();
        assert!(
            snap.ends_with("    7   230  159    0        1  1  1    \"left kidney\"\n"),
            "{snap}"
        );
        let read = parse(&snap, Program::ItkSnap).unwrap();
        let names: Vec<(i32, &str)> = read.iter().map(|e| (e.label.value, &*e.label.name)).collect();
        assert_eq!(names, [(0, "Clear Label"), (3, "a 'b'"), (7, "left kidney")]);
        assert_eq!(read[2], entries[1]);
        let slicer = text(&entries, Program::Slicer).unwrap();
        assert!(slicer.contains("\n0 background 0 0 0 0\n"), "{slicer}");
        assert!(slicer.contains("\n7 left_kidney 230 159 0 255\n"), "{slicer}");
        assert_eq!(parse(&slicer, Program::Slicer).unwrap()[2], entries[1]);
        for value in [-1, 1 << 16] {
            let refused = text(&coloured(&[label(value, "x")]), Program::Slicer).unwrap_err();
            assert!(
                refused.contains("the label x") && refused.contains("65535"),
                "{refused}"
            );
        }
    }

    #[test]
    fn what_is_no_table_is_told_by_its_line() {
        for (program, text, part) in [
            (Program::ItkSnap, "1 2 3 4 1 1 1 unquoted", "line 1"),
            (Program::ItkSnap, "# x\n1 2 3 1 1 1 \"a\"", "line 2"),
            (Program::ItkSnap, "1 2 3 300 1 1 1 \"a\"", "line 1"),
            (Program::ItkSnap, "", "no label"),
            (Program::Slicer, "1 a 2 3 4 255\n1 b 2 3 4 255", "one value, 1"),
            (Program::Slicer, "-1 a 2 3 4 255", "line 1"),
            (Program::Slicer, "1 a b 2 3 4 255", "line 1"),
        ] {
            let refused = parse(text, program).unwrap_err();
            assert!(refused.contains(part), "{text}: {refused}");
        }
        assert!(Program::of(Path::new("a.csv")).unwrap_err().contains(".ctbl"));
    }
}
