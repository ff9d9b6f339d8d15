//! Words of instructions: splitting, quotes, escapes, variables.

/// Most of one value inside the other, as in `${A:-${B:-c}}`.
const DEPTH_MAX: usize = 16;
/// Most bytes of a value: variables that hold themselves several times double with each line.
const VALUE_MAX: usize = 128 << 10;

/// Finds the value of a variable.
pub(super) type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Splits at white space that is not quoted or escaped; quotes and escapes stay.
pub(super) fn split(text: &str, escape: char) -> Vec<String> {
    let mut words = Vec::new();
    let (mut word, mut quote) = (String::new(), None);
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match quote {
            None if character.is_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                continue;
            }
            None if character == '\'' || character == '"' => quote = Some(character),
            Some(open) if open == character => quote = None,
            _ => {}
        }
        word.push(character);
        if character == escape && quote != Some('\'') {
            word.extend(characters.next());
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

/// Takes quotes and escapes away, and puts values in the places of variables.
pub(super) fn expand(text: &str, escape: char, lookup: Lookup<'_>) -> Result<String, String> {
    let mut expander = Expander { rest: text, escape, lookup, depth: 0 };
    let value = expander.until(None)?;
    Ok(value)
}

struct Expander<'a> {
    rest: &'a str,
    escape: char,
    lookup: Lookup<'a>,
    depth: usize,
}

impl Expander<'_> {
    fn next(&mut self) -> Option<char> {
        let mut characters = self.rest.chars();
        let character = characters.next()?;
        self.rest = characters.as_str();
        Some(character)
    }

    fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    /// The value up to a character, which is taken too, or to the end.
    fn until(&mut self, end: Option<char>) -> Result<String, String> {
        let mut value = String::new();
        while let Some(character) = self.next() {
            if Some(character) == end {
                return Ok(value);
            }
            match character {
                '\'' => loop {
                    match self.next() {
                        Some('\'') => break,
                        Some(inside) => value.push(inside),
                        None => return Err("a quote (') is not closed".to_owned()),
                    }
                },
                '"' => self.quoted(&mut value)?,
                '$' => value.push_str(&self.variable()?),
                // An escape at the end stands for nothing.
                _ if character == self.escape => value.extend(self.next()),
                _ => value.push(character),
            }
            if value.len() > VALUE_MAX {
                return Err(format!("a value has more than {VALUE_MAX} bytes"));
            }
        }
        if end.is_some() { Err("a `${` is not closed".to_owned()) } else { Ok(value) }
    }

    fn quoted(&mut self, value: &mut String) -> Result<(), String> {
        loop {
            match self.next() {
                Some('"') => return Ok(()),
                Some('$') => value.push_str(&self.variable()?),
                Some(character) if character == self.escape => match self.next() {
                    Some(next) if next == '"' || next == '$' || next == self.escape => value.push(next),
                    Some(next) => value.extend([character, next]),
                    None => return Err("a quote (\") is not closed".to_owned()),
                },
                Some(character) => value.push(character),
                None => return Err("a quote (\") is not closed".to_owned()),
            }
            if value.len() > VALUE_MAX {
                return Err(format!("a value has more than {VALUE_MAX} bytes"));
            }
        }
    }

    /// What follows a `$`.
    fn variable(&mut self) -> Result<String, String> {
        if self.peek() != Some('{') {
            let name = self.name();
            return Ok(if name.is_empty() {
                "$".to_owned()
            } else {
                (self.lookup)(&name).unwrap_or_default()
            });
        }
        self.next();
        let name = self.name();
        if name.is_empty() {
            return Err("`${` is followed by no name of a variable".to_owned());
        }
        let value = (self.lookup)(&name);
        let colon = self.peek() == Some(':');
        if colon {
            self.next();
        }
        // With a colon an empty value counts as none.
        let given = value.filter(|value| !(colon && value.is_empty()));
        let operator = self.next();
        match operator {
            Some('}') if !colon => Ok(given.unwrap_or_default()),
            Some('-' | '+' | '?') => {
                self.depth += 1;
                if self.depth > DEPTH_MAX {
                    return Err(format!("more than {DEPTH_MAX} values are inside of one another"));
                }
                let word = self.until(Some('}'))?;
                self.depth -= 1;
                match (operator, given) {
                    (Some('-'), given) => Ok(given.unwrap_or(word)),
                    (Some('+'), given) => Ok(given.map(|_| word).unwrap_or_default()),
                    (_, Some(given)) => Ok(given),
                    (_, None) if word.is_empty() => Err(format!("the variable {name} is not set")),
                    (_, None) => Err(format!("{name}: {word}")),
                }
            }
            Some(other) => Err(format!(
                "`${{{name}{}{other}` is not supported: of the forms with braces, NAME and NAME followed by :- :+ :? - + ? are",
                if colon { ":" } else { "" }
            )),
            None => Err("a `${` is not closed".to_owned()),
        }
    }

    fn name(&mut self) -> String {
        let fits = |(index, character): &(usize, char)| {
            *character == '_' || character.is_ascii_alphabetic() || (*index > 0 && character.is_ascii_digit())
        };
        let name: String = self
            .rest
            .chars()
            .enumerate()
            .take_while(|one| fits(one))
            .map(|(_, character)| character)
            .collect();
        self.rest = &self.rest[name.len()..];
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lookup(name: &str) -> Option<String> {
        match name {
            "A" => Some("a b".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        }
    }

    #[test]
    fn words_keep_what_is_quoted_together() {
        for (text, words) in [
            ("  a=b  c ", &["a=b", "c"][..]),
            ("a=\"b c\" d='e \\' f", &["a=\"b c\"", "d='e \\'", "f"]),
            ("a=b\\ c", &["a=b\\ c"]),
            ("a=\"b\\\" c\"", &["a=\"b\\\" c\""]),
            ("", &[]),
        ] {
            assert_eq!(split(text, '\\'), words, "{text}");
        }
        assert_eq!(split("a` b", '`'), ["a` b"]);
    }

    #[test]
    fn variables_quotes_and_escapes_are_those_of_a_dockerfile() {
        for (text, value) in [
            ("$A", "a b"),
            ("${A}x", "a bx"),
            ("'$A'", "$A"),
            ("\"$A\\\"\\x\"", "a b\"\\x"),
            ("\\$A", "$A"),
            ("$NONE-$EMPTY", "-"),
            ("${NONE:-x}${EMPTY:-y}${EMPTY-z}", "xy"),
            ("${A:+x}${EMPTY:+y}${EMPTY+z}", "xz"),
            ("${NONE:-${A}}", "a b"),
            ("${NONE:-\"}\"}", "}"),
            ("$ $5 $", "$ $5 $"),
            ("${A:?no}", "a b"),
            ("end\\", "end"),
            ("ä$A", "äa b"),
        ] {
            assert_eq!(expand(text, '\\', &lookup).as_deref(), Ok(value), "{text}");
        }
        for (text, part) in [
            ("'a", "closed"),
            ("\"a", "closed"),
            ("${A", "closed"),
            ("${A:-x", "closed"),
            ("${NONE:?missing}", "NONE: missing"),
            ("${A#x}", "#"),
            ("${A:}", "not supported"),
            ("${}", "no name"),
            ("${1}", "no name"),
        ] {
            let refused = expand(text, '\\', &lookup).unwrap_err();
            assert!(refused.contains(part), "{text}: {refused}");
        }
        let deep = format!("{}x{}", "${B:-".repeat(100), "}".repeat(100));
        assert!(expand(&deep, '\\', &lookup).unwrap_err().contains("inside"));
    }

    #[test]
    fn a_value_that_grows_is_bounded() {
        let large = |_: &str| Some("x".repeat(100 << 10));
        assert!(expand("$A$A", '\\', &large).unwrap_err().contains("bytes"));
        assert!(expand("\"$A$A\"", '\\', &large).unwrap_err().contains("bytes"));
    }
}
