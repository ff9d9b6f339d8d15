//! A shell of a page: words, quotes, variables, `;`, `&&`, `||`, `>`, `>>`, `>&2`, and the built-ins tests need.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::guest::process::{Process, Side};
use crate::guest::programs::{self, Context, Ending, Target};
use crate::guest::system::GuestSystem;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(String),
    /// `;`, a new line, `&&` or `||`.
    Joint(&'static str),
    /// `>`, `>>` or `>&2`.
    Redirect(&'static str),
}

/// Progress of a script, from which a child of the machine continues.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Place {
    script: String,
    /// Commands that are done.
    done: usize,
    /// Code of the last one.
    last: u8,
    joint: String,
    context: Context,
}

/// Runs a script to its end.
pub(crate) async fn run(
    system: &Arc<GuestSystem>,
    process: &Arc<Process>,
    mut context: Context,
    script: &str,
    target: &Target,
) -> Ending {
    let outermost = !context.nested;
    context.nested = true;
    let start = Place { script: script.to_owned(), done: 0, last: 0, joint: ";".to_owned(), context };
    // A process has one place; a shell inside of its shell begins anew.
    let saved = if outermost { process.place() } else { None };
    // `joint`: what must hold of the last code for the next command to run.
    let Place { script, done, mut last, mut joint, mut context } = saved.unwrap_or(start);
    for (index, (command, next)) in commands(&script).into_iter().enumerate().skip(done) {
        if outermost {
            let (script, joint, context) = (script.clone(), joint.clone(), context.clone());
            process.note_place(Place { script, done: index, last, joint, context });
        }
        let wanted = match joint.as_str() {
            "&&" => last == 0,
            "||" => last != 0,
            _ => true,
        };
        next.clone_into(&mut joint);
        if !wanted || command.is_empty() {
            continue;
        }
        let (words, target) = arrange(&command, &context, process.pid, last, target);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match words.as_slice() {
            [] => {}
            ["exit"] => return Ending::Code(last),
            ["exit", code] => return Ending::Code(code.parse().unwrap_or(2)),
            ["kill", signal, pid] if *pid == process.pid.to_string() => {
                if let Some(signal) = signal.strip_prefix('-').and_then(|signal| signal.parse().ok()) {
                    return Ending::Signal(signal);
                }
                last = 2;
            }
            ["cd", path] => context.directory = programs::absolute(&context, path),
            ["read", name] => {
                let line = process.read().await.unwrap_or_default();
                let line = String::from_utf8_lossy(&line).trim_end().to_owned();
                context.environment.insert((*name).to_owned(), line);
            }
            [assignment] if assignment.split_once('=').is_some_and(|(name, _)| is_name(name)) => {
                if let Some((name, value)) = assignment.split_once('=') {
                    context.environment.insert(name.to_owned(), value.to_owned());
                }
            }
            words => {
                let command: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
                let ending = Box::pin(programs::run_to(system, process, &context, &command, &target)).await;
                last = match ending {
                    Ending::Code(code) => code,
                    Ending::Signal(signal) => 128u8.saturating_add(signal),
                };
            }
        }
    }
    Ending::Code(last)
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// Commands with the joint that follows each.
fn commands(script: &str) -> Vec<(Vec<Token>, &'static str)> {
    let mut found = Vec::new();
    let mut command = Vec::new();
    for token in tokens(script) {
        match token {
            Token::Joint(joint) => found.push((std::mem::take(&mut command), joint)),
            token => command.push(token),
        }
    }
    found.push((command, ";"));
    found
}

/// Words with variables replaced, and where the output goes.
fn arrange(
    command: &[Token],
    context: &Context,
    pid: u32,
    last: u8,
    target: &Target,
) -> (Vec<String>, Target) {
    let (mut words, mut target) = (Vec::new(), target.clone());
    let mut tokens = command.iter();
    while let Some(token) = tokens.next() {
        match token {
            Token::Word(word) => words.push(expand(word, context, pid, last)),
            Token::Redirect(">&2") => target = Target::Side(Side::Stderr),
            Token::Redirect(how) => {
                if let Some(Token::Word(path)) = tokens.next() {
                    let path = programs::absolute(context, &expand(path, context, pid, last));
                    target = Target::File { path, append: *how == ">>" };
                }
            }
            Token::Joint(_) => {}
        }
    }
    (words, target)
}

/// Marks a `$` that was quoted and means itself.
const PLAIN_DOLLAR: char = '\u{1}';

fn expand(word: &str, context: &Context, pid: u32, last: u8) -> String {
    let mut out = String::new();
    let mut rest = word;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push_str(&pid.to_string());
            rest = after;
        } else if let Some(after) = rest.strip_prefix('?') {
            out.push_str(&last.to_string());
            rest = after;
        } else {
            let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(rest.len());
            if end == 0 {
                out.push('$');
            }
            out.push_str(context.environment.get(&rest[..end]).map_or("", String::as_str));
            rest = &rest[end..];
        }
    }
    out.push_str(rest);
    out.replace(PLAIN_DOLLAR, "$")
}

fn tokens(script: &str) -> Vec<Token> {
    let mut found = Vec::new();
    let mut word: Option<String> = None;
    let mut characters = script.chars().peekable();
    while let Some(character) = characters.next() {
        let special = match character {
            '\'' => {
                let text = characters.by_ref().take_while(|c| *c != '\'');
                let text: String = text.map(|c| if c == '$' { PLAIN_DOLLAR } else { c }).collect();
                word.get_or_insert_default().push_str(&text);
                continue;
            }
            '"' => {
                let text: String = characters.by_ref().take_while(|c| *c != '"').collect();
                word.get_or_insert_default().push_str(&text);
                continue;
            }
            ' ' | '\t' => None,
            ';' | '\n' => Some(Token::Joint(";")),
            '&' if characters.next_if_eq(&'&').is_some() => Some(Token::Joint("&&")),
            '|' if characters.next_if_eq(&'|').is_some() => Some(Token::Joint("||")),
            '>' if characters.next_if_eq(&'>').is_some() => Some(Token::Redirect(">>")),
            '>' if characters.next_if_eq(&'&').is_some() => {
                // Only `>&2` is known; the number is taken with it.
                characters.next();
                Some(Token::Redirect(">&2"))
            }
            '>' => Some(Token::Redirect(">")),
            other => {
                word.get_or_insert_default().push(other);
                continue;
            }
        };
        found.extend(word.take().map(Token::Word));
        found.extend(special);
    }
    found.extend(word.map(Token::Word));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_are_taken_apart_as_a_shell_does() {
        let word = |text: &str| Token::Word(text.to_owned());
        let found = tokens("echo 'a  b'\"c;d\" >&2 && false||x>>f");
        let expected = [
            word("echo"),
            word("a  bc;d"),
            Token::Redirect(">&2"),
            Token::Joint("&&"),
            word("false"),
            Token::Joint("||"),
            word("x"),
            Token::Redirect(">>"),
            word("f"),
        ];
        assert_eq!(found, expected);
    }
}
