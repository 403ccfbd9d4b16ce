//! Loops that the text unrolls: `// unroll` above a loop whose bounds are numbers.
//!
//! ```wgsl
//! // unroll
//! for (var k = 0u; k < 8u; k++) {
//!     load_row(k, at);
//! }
//! ```
//!
//! becomes `load_row(0u, at);` to `load_row(7u, at);`. llvmpipe unrolls no loop whose body indexes private arrays, and an
//! index that is no constant keeps such an array out of registers. A body that declares variables becomes a block each time.
//! The loop stands on lines of its own, its closing brace at the depth of its `for`.

/// The text of all parts, one after the other, with the marked loops unrolled.
pub(super) fn unrolled(parts: &[&str]) -> String {
    let lines: Vec<&str> = parts.iter().flat_map(|part| part.lines()).collect();
    let mut text = String::new();
    expand(&lines, &mut text);
    text
}

fn expand(lines: &[&str], text: &mut String) {
    let mut at = 0;
    while at < lines.len() {
        if lines[at].trim() != "// unroll" {
            text.push_str(lines[at]);
            text.push('\n');
            at += 1;
            continue;
        }
        let head = lines.get(at + 1).copied().unwrap_or_default();
        let (variable, from, to) = bounds(head).unwrap_or_else(|| {
            panic!("`// unroll` wants `for (var k = 0u; k < 8u; k++) {{` below, not `{head}`")
        });
        let indent = &head[..head.len() - head.trim_start().len()];
        let closing = format!("{indent}}}");
        let length = lines[at + 2..]
            .iter()
            .position(|line| *line == closing)
            .unwrap_or_else(|| panic!("the loop `{head}` does not end"));
        let body = &lines[at + 2..at + 2 + length];
        // Those of blocks within stay there.
        let declares = body.iter().any(|line| {
            let own = line
                .strip_prefix(indent)
                .and_then(|line| line.strip_prefix("    "));
            own.is_some_and(|line| line.starts_with("let ") || line.starts_with("var "))
        });
        for k in from..to {
            let of_k: Vec<String> = body.iter().map(|line| replace(line, variable, k)).collect();
            let of_k: Vec<&str> = of_k.iter().map(String::as_str).collect();
            if declares {
                text.push_str(&format!("{indent}{{\n"));
            }
            expand(&of_k, text);
            if declares {
                text.push_str(&format!("{indent}}}\n"));
            }
        }
        at += length + 3;
    }
}

/// Variable, first value and end of `for (var k = 0u; k < 8u; k++) {`.
fn bounds(head: &str) -> Option<(&str, u32, u32)> {
    let inside = head.trim().strip_prefix("for (var ")?.strip_suffix("++) {")?;
    let (start, rest) = inside.split_once("; ")?;
    let (condition, last) = rest.split_once("; ")?;
    let (variable, from) = start.split_once(" = ")?;
    let (tested, to) = condition.split_once(" < ")?;
    let number = |text: &str| text.strip_suffix('u')?.parse().ok();
    (tested == variable && last == variable).then_some((variable, number(from)?, number(to)?))
}

/// The line with the variable's value for its name.
fn replace(line: &str, variable: &str, value: u32) -> String {
    let mut result = String::new();
    let mut rest = line;
    while let Some(start) = rest.find(|c: char| c.is_ascii_alphabetic() || c == '_') {
        let word_at = &rest[start..];
        let end = word_at
            .find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
            .unwrap_or(word_at.len());
        let before = rest[..start].chars().next_back();
        // Neither a member (`a.k`) nor the suffix of a number (`8u`).
        let own = !before.is_some_and(|c| c == '.' || c.is_ascii_digit());
        result.push_str(&rest[..start]);
        match own && &word_at[..end] == variable {
            true => result.push_str(&format!("{value}u")),
            false => result.push_str(&word_at[..end]),
        }
        rest = &word_at[end..];
    }
    result + rest
}

#[cfg(test)]
mod tests {
    use super::unrolled;

    #[test]
    fn loops_become_their_bodies() {
        let text = "fn f() {\n    // unroll\n    for (var k = 1u; k < 3u; k++) {\n        g(k, p.k, ok, 4u + k);\n    }\n}";
        assert_eq!(
            unrolled(&[text]),
            "fn f() {\n        g(1u, p.k, ok, 4u + 1u);\n        g(2u, p.k, ok, 4u + 2u);\n}\n"
        );
    }

    #[test]
    fn loops_in_loops_and_declarations_keep_their_blocks() {
        let text = "// unroll\nfor (var i = 0u; i < 2u; i++) {\n    // unroll\n    for (var j = 0u; j < 2u; j++) {\n        \
                    let a = x[i + j];\n    }\n}";
        let inner = |i, j| format!("    {{\n        let a = x[{i}u + {j}u];\n    }}\n");
        let outer = |i| format!("{}{}", inner(i, 0), inner(i, 1));
        let unrolled = unrolled(&[text]);
        assert_eq!(unrolled, format!("{}{}", outer(0), outer(1)), "{unrolled}");
    }

    #[test]
    #[should_panic(expected = "wants")]
    fn a_loop_with_other_bounds_is_refused() {
        unrolled(&["// unroll\nfor (var k = 0u; k < N; k++) {\n}"]);
    }
}
