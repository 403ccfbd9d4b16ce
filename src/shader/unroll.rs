//! Loops that the text unrolls: `// unroll` above a loop whose bounds are made of numbers and the module's `u32` constants.
//!
//! ```wgsl
//! // unroll
//! for (var k = 0u; k < 2u * ROWS; k++) {
//!     rows[k] = load(at + row_at[k]);
//! }
//! ```
//!
//! becomes `rows[0u] = load(at + row_at[0u]);` and so on, indices as numbers. llvmpipe unrolls no loop whose body indexes private arrays, and an
//! index that is no constant keeps such an array out of registers. Loops in loops, rather than functions of what is constant:
//! drivers take a thousand times as long to put a function's body in the place of its call as to read the body there.
//! A body that declares variables becomes a block each time. The loop stands on lines of its own, its closing brace at the depth
//! of its `for`.

use std::collections::HashMap;

/// The text with the marked loops unrolled.
pub(super) fn unrolled(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let constants = lines.iter().filter_map(|line| {
        let (name, rest) = line.strip_prefix("const ")?.split_once(": u32 = ")?;
        Some((name, rest.strip_suffix(';')?))
    });
    let mut unrolled = String::new();
    expand(&lines, &Constants(constants.collect()), &mut unrolled);
    unrolled
}

fn expand(lines: &[&str], constants: &Constants, text: &mut String) {
    let mut at = 0;
    while at < lines.len() {
        if lines[at].trim() != "// unroll" {
            text.push_str(lines[at]);
            text.push('\n');
            at += 1;
            continue;
        }
        let head = lines.get(at + 1).copied().unwrap_or_default();
        let (variable, from, to) = bounds(head, constants).unwrap_or_else(|| {
            panic!(
                "`// unroll` wants `for (var k = 0u; k < 8u; k++) {{` below, with bounds of numbers and constants, not `{head}`"
            )
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
            own.is_some_and(|line| {
                ["let ", "var ", "const "]
                    .iter()
                    .any(|word| line.starts_with(word))
            })
        });
        for k in from..to {
            let of_k: Vec<String> = body
                .iter()
                .map(|line| constants.in_brackets(&replace(line, variable, k)))
                .collect();
            let of_k: Vec<&str> = of_k.iter().map(String::as_str).collect();
            if declares {
                text.push_str(&format!("{indent}{{\n"));
            }
            expand(&of_k, constants, text);
            if declares {
                text.push_str(&format!("{indent}}}\n"));
            }
        }
        at += length + 3;
    }
}

/// Variable, first value and end of `for (var k = 0u; k < 8u; k++) {`.
fn bounds<'a>(head: &'a str, constants: &Constants) -> Option<(&'a str, u32, u32)> {
    let inside = head.trim().strip_prefix("for (var ")?.strip_suffix("++) {")?;
    let (start, rest) = inside.split_once("; ")?;
    let (condition, last) = rest.split_once("; ")?;
    let (variable, from) = start.split_once(" = ")?;
    let (tested, to) = condition.split_once(" < ")?;
    (tested == variable && last == variable).then_some((
        variable,
        constants.value(from)?,
        constants.value(to)?,
    ))
}

/// The module's constants by name, as they are written.
struct Constants<'a>(HashMap<&'a str, &'a str>);

impl Constants<'_> {
    /// The value of a WGSL expression of numbers, constants, `+ - * / %`, parentheses, `min` and `max`.
    fn value(&self, expression: &str) -> Option<u32> {
        let mut rest = expression;
        let value = self.sum(&mut rest)?;
        rest.trim().is_empty().then_some(value)
    }

    /// The line with its constant indices as numbers: naga takes longer to compute them.
    fn in_brackets(&self, line: &str) -> String {
        let mut result = String::new();
        let mut rest = line;
        while let Some((before, inside)) = rest.split_once('[') {
            result.push_str(before);
            result.push('[');
            rest = inside;
            let end = inside.find(['[', ']']).unwrap_or(inside.len());
            if let Some(value) = self.value(&inside[..end]) {
                result.push_str(&format!("{value}u"));
                rest = &inside[end..];
            }
        }
        result + rest
    }

    fn sum(&self, rest: &mut &str) -> Option<u32> {
        let mut value = self.product(rest)?;
        loop {
            value = match operator(rest, &['+', '-']) {
                Some('+') => value.checked_add(self.product(rest)?)?,
                Some(_) => value.checked_sub(self.product(rest)?)?,
                None => return Some(value),
            };
        }
    }

    fn product(&self, rest: &mut &str) -> Option<u32> {
        let mut value = self.operand(rest)?;
        loop {
            value = match operator(rest, &['*', '/', '%']) {
                Some('*') => value.checked_mul(self.operand(rest)?)?,
                Some('/') => value.checked_div(self.operand(rest)?)?,
                Some(_) => value.checked_rem(self.operand(rest)?)?,
                None => return Some(value),
            };
        }
    }

    fn operand(&self, rest: &mut &str) -> Option<u32> {
        if operator(rest, &['(']).is_some() {
            let value = self.sum(rest)?;
            operator(rest, &[')'])?;
            return Some(value);
        }
        let text = rest.trim_start();
        let end = text
            .find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
            .unwrap_or(text.len());
        let word = &text[..end];
        *rest = &text[end..];
        if word == "min" || word == "max" {
            operator(rest, &['('])?;
            let first = self.sum(rest)?;
            operator(rest, &[','])?;
            let second = self.sum(rest)?;
            operator(rest, &[')'])?;
            return Some(if word == "min" {
                first.min(second)
            } else {
                first.max(second)
            });
        }
        match self.0.get(word) {
            Some(written) => self.value(written),
            None => word.strip_suffix('u')?.parse().ok(),
        }
    }
}

/// Takes one of these characters off the start of the text.
fn operator(rest: &mut &str, of: &[char]) -> Option<char> {
    let text = rest.trim_start();
    let found = text.chars().next().filter(|c| of.contains(c))?;
    *rest = &text[found.len_utf8()..];
    Some(found)
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
            unrolled(text),
            "fn f() {\n        g(1u, p.k, ok, 4u + 1u);\n        g(2u, p.k, ok, 4u + 2u);\n}\n"
        );
    }

    #[test]
    fn loops_in_loops_and_declarations_keep_their_blocks() {
        let text = "// unroll\nfor (var i = 0u; i < 2u; i++) {\n    // unroll\n    for (var j = 0u; j < 2u; j++) {\n        \
                    let a = x[i + j];\n    }\n}";
        let inner = |i, j| format!("    {{\n        let a = x[{}u];\n    }}\n", i + j);
        let outer = |i| format!("{}{}", inner(i, 0), inner(i, 1));
        let unrolled = unrolled(text);
        assert_eq!(unrolled, format!("{}{}", outer(0), outer(1)), "{unrolled}");
    }

    #[test]
    fn bounds_are_made_of_constants_and_of_the_loops_around() {
        let text = "const ROWS: u32 = 2u;\nconst ALL: u32 = max(ROWS, 3u) * (ROWS - 1u) % 2u;\n// unroll\nfor (var i = 0u; i < ROWS; \
                    i++) {\n    // unroll\n    for (var j = ALL - 1u; j < min(4u, i + 1u); j++) {\n        x[j] = i;\n    }\n}";
        let unrolled = unrolled(text);
        let body = "        x[0u] = 0u;\n        x[0u] = 1u;\n        x[1u] = 1u;\n";
        assert!(unrolled.ends_with(&format!("% 2u;\n{body}")), "{unrolled}");
    }

    #[test]
    #[should_panic(expected = "wants")]
    fn a_loop_with_other_bounds_is_refused() {
        unrolled("// unroll\nfor (var k = 0u; k < N; k++) {\n}");
    }
}
