//! Tables of points: CSV with the columns x, y, z (millimetres of the scan's world) or i, j, k (its voxels).

/// What a point's three numbers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Axes {
    /// `x, y, z`: millimetres to the patient's right, anterior and superior, NIfTI's world.
    World,
    /// `i, j, k`: voxel indices from 0 along the file's axes; fractions are allowed.
    Voxels,
}

impl Axes {
    /// The names of the three columns.
    pub fn names(self) -> [&'static str; 3] {
        match self {
            Axes::World => ["x", "y", "z"],
            Axes::Voxels => ["i", "j", "k"],
        }
    }
}

/// A line of the table.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Its number in the file, from 1.
    pub line: usize,
    /// Along the axes, whatever the order of the columns.
    pub at: [f64; 3],
}

/// Reads a table whose fields are separated by commas, semicolons, tabs or spaces. Columns are found by their names in the
/// first line (`x`, `x_mm` or `x (mm)`, in capitals or not), in any order and among others; without such a line there must
/// be three columns, in the order of the axes.
///
/// # Errors
/// Columns that are missing, twice or of the other axes, more than three without names, lines of unequal length, fields that
/// are not finite numbers with a decimal point, comments, and no point at all.
pub fn read(text: &str, axes: Axes) -> Result<Vec<Point>, String> {
    let text = text.trim_start_matches('\u{feff}');
    let first = text
        .lines()
        .find(|line| !line.trim().is_empty())
        .unwrap_or_default();
    let separator = [';', '\t', ',']
        .into_iter()
        .find(|separator| first.contains(*separator));
    let line = |line: &str| match separator {
        _ if line.trim().is_empty() => String::new(),
        Some(_) => line.to_string(),
        // spaces may be several
        None => line.split_whitespace().collect::<Vec<_>>().join(" "),
    };
    let text = text.lines().map(line).collect::<Vec<_>>().join("\n");
    // csv counts a line break that follows a record into the next
    let (mut counted, mut line) = (0, 1);
    let mut line_of = |position: Option<&csv::Position>| {
        let start = position.map_or(0, |position| position.byte() as usize);
        let start = text.len() - text[start.min(text.len())..].trim_start_matches('\n').len();
        line += text[counted.min(start)..start].matches('\n').count();
        counted = start;
        line
    };
    let mut table = csv::ReaderBuilder::new()
        .delimiter(separator.unwrap_or(' ') as u8)
        .has_headers(false)
        .trim(csv::Trim::All)
        .from_reader(text.as_bytes());
    let mut columns = None;
    let mut points = Vec::new();
    for record in table.records() {
        let record = record.map_err(|e| match e.kind() {
            csv::ErrorKind::UnequalLengths {
                pos,
                expected_len,
                len,
            } => format!(
                "line {}: it has {len} columns, the lines before have {expected_len}",
                line_of(pos.as_ref())
            ),
            _ => e.to_string(),
        })?;
        let line = line_of(record.position());
        if record[0].starts_with('#') {
            return Err(format!(
                "line {line}: comments are not read; points are in the columns {}",
                axes.names().join(", ")
            ));
        }
        let [a, b, c] = match columns {
            Some(columns) => columns,
            None if is_names(&record) => {
                columns = Some(named(&record, axes)?);
                continue;
            }
            None if record.len() != 3 => {
                return Err(format!(
                    "line {line}: it has {} columns; name them in a first line, {} among them",
                    record.len(),
                    axes.names().join(", ")
                ));
            }
            None => *columns.insert([0, 1, 2]),
        };
        let number = |column: usize| {
            let field = &record[column];
            let value = field.parse().ok().filter(|v: &f64| v.is_finite());
            value.ok_or_else(|| format!("line {line}: `{field}` is not a number such as -12.5"))
        };
        points.push(Point {
            line,
            at: [number(a)?, number(b)?, number(c)?],
        });
    }
    match points.is_empty() {
        true => Err("there are no points in it".into()),
        false => Ok(points),
    }
}

/// Whether a line names columns: words, and no number.
fn is_names(record: &csv::StringRecord) -> bool {
    record.iter().all(|field| field.parse::<f64>().is_err())
        && record.iter().any(|field| field.contains(char::is_alphabetic))
}

/// Where the axes' columns are in a line of names.
fn named(names: &csv::StringRecord, axes: Axes) -> Result<[usize; 3], String> {
    let names: Vec<String> = names.iter().map(str::to_lowercase).collect();
    let find = |axis: &str| {
        let is = |name: &str| match name.strip_prefix(axis) {
            Some(unit) => matches!(unit.trim_matches([' ', '_', '(', ')', '[', ']']), "" | "mm"),
            None => false,
        };
        let mut found = (0..names.len()).filter(|column| is(&names[*column]));
        (found.next(), found.next())
    };
    let mut columns = [0; 3];
    for (column, axis) in columns.iter_mut().zip(axes.names()) {
        *column = match find(axis) {
            (Some(at), None) => at,
            (Some(_), Some(_)) => return Err(format!("two of its columns are {axis}")),
            (None, _) => {
                let other = match axes {
                    Axes::World => Axes::Voxels,
                    Axes::Voxels => Axes::World,
                };
                let described = |axes: Axes| match axes {
                    Axes::World => "millimetres x, y, z",
                    Axes::Voxels => "voxel indices i, j, k",
                };
                return Err(match other.names().iter().all(|axis| find(axis).0.is_some()) {
                    true => format!("its columns are {}, not {}", described(other), described(axes)),
                    false => format!(
                        "it has no column {axis}; its columns are {}, and {} are needed",
                        names.join(", "),
                        axes.names().join(", ")
                    ),
                });
            }
        };
    }
    Ok(columns)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str, axes: Axes) -> Result<Vec<(usize, [f64; 3])>, String> {
        let points = read(text, axes)?;
        Ok(points.into_iter().map(|p| (p.line, p.at)).collect())
    }

    #[test]
    fn columns_are_found_by_their_names_and_separators_by_the_first_line() {
        let want = |first: usize| Ok(vec![(first, [1.0, -2.5, 3.0]), (first + 1, [4.0, 5.0, 6e1])]);
        for (text, first) in [
            ("1,-2.5,3\n4,5,60\n", 1),
            ("1;-2.5;3\n4;5;60", 1),
            ("1\t-2.5\t3\r\n4\t5\t60\r\n", 1),
            ("  1   -2.5 3 \n4 5 60\n\n", 1),
            ("\u{feff}x,y,z\n1,-2.5,3\n4,5,60\n", 2),
            ("z;y;x\n3;-2.5;1\n60;5;4\n", 2),
            (
                "id,X (mm),Y (mm),Z (mm),note\n7,1,-2.5,3,\"a, b\"\n8,4,5,60,\n",
                2,
            ),
            ("name, z_mm, x_mm, y_mm\np1, 3, 1, -2.5\np2, 60, 4, 5\n", 2),
        ] {
            assert_eq!(at(text, Axes::World), want(first), "{text}");
        }
        assert_eq!(
            at("k,j,i\n3,2,1\n", Axes::Voxels),
            Ok(vec![(2, [1.0, 2.0, 3.0])]),
            "as named, not as listed"
        );
        assert_eq!(
            at("x,y,z\n\n1,2,3\n", Axes::World),
            Ok(vec![(3, [1.0, 2.0, 3.0])])
        );
    }

    #[test]
    fn what_could_be_misread_is_refused_with_its_line() {
        for (text, axes, reason) in [
            ("7,1,2,3\n", Axes::World, "line 1: it has 4 columns; name them"),
            ("1,2\n", Axes::World, "line 1: it has 2 columns"),
            ("p1,1,2,3\n", Axes::World, "line 1: it has 4 columns"),
            ("1,2,3\n4,5\n", Axes::World, "line 2: it has 2 columns"),
            ("1,2,3\n4,5,6,7\n", Axes::World, "line 2: it has 4 columns"),
            ("1,2,3\n4 5 6\n", Axes::World, "line 2: it has 1 columns"),
            ("1,5;2,5;3,5\n", Axes::World, "line 1: `1,5` is not a number"),
            ("1,2,\n", Axes::World, "line 1: `` is not a number"),
            ("1,2,nan\n", Axes::World, "line 1: `nan`"),
            ("1,2,1e999\n", Axes::World, "line 1: `1e999`"),
            ("x,y,z\n1,2,three\n", Axes::World, "line 2: `three`"),
            (
                "i,j,k\n1,2,3\n",
                Axes::World,
                "voxel indices i, j, k, not millimetres x, y, z",
            ),
            (
                "x,y,z\n1,2,3\n",
                Axes::Voxels,
                "millimetres x, y, z, not voxel indices i, j, k",
            ),
            (
                "a,b,c\n1,2,3\n",
                Axes::World,
                "no column x; its columns are a, b, c",
            ),
            ("x,y\n1,2\n", Axes::World, "no column z"),
            ("x,x,y,z\n1,2,3,4\n", Axes::World, "two of its columns are x"),
            (
                "# CoordinateSystem = LPS\n1,2,3\n",
                Axes::World,
                "line 1: comments",
            ),
            ("x,y,z\n", Axes::World, "no points"),
            ("", Axes::World, "no points"),
            ("\n \n", Axes::Voxels, "no points"),
        ] {
            let message = at(text, axes).unwrap_err();
            assert!(message.contains(reason), "{text:?}: {message}");
        }
    }
}
