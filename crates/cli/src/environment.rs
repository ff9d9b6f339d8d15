//! Variables for commands, from options and files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;

use crate::error::CliError;
use crate::pairs::variable;

/// Variables of a command.
#[derive(Debug, Clone, Args)]
pub(crate) struct Environment {
    /// Set an environment variable; KEY alone takes the value of this shell
    #[arg(short, long = "env", value_name = "KEY[=VALUE]", value_parser = variable)]
    environment: Vec<(String, String)>,
    /// Read environment variables from a file: KEY[=VALUE] on each line, # begins a comment; --env wins
    #[arg(long = "env-file", value_name = "FILE")]
    env_files: Vec<PathBuf>,
}

impl Environment {
    /// All variables.
    ///
    /// # Errors
    /// If a file cannot be read, or a line of it is no variable.
    pub(crate) fn all(&self) -> Result<BTreeMap<String, String>, CliError> {
        let mut all = BTreeMap::new();
        for path in &self.env_files {
            let text =
                std::fs::read_to_string(path).map_err(|error| CliError::file("reading", path, &error))?;
            all.extend(lines(path, &text)?);
        }
        // Last: what stands on the command line wins.
        all.extend(self.environment.iter().cloned());
        Ok(all)
    }
}

/// As docker reads them: nothing is unquoted, and spaces belong to the value.
fn lines(path: &Path, text: &str) -> Result<Vec<(String, String)>, CliError> {
    let mut all = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        all.push(variable(line).map_err(|reason| {
            let place = format!("line {} of {}", number + 1, path.display());
            CliError::invalid("env_file_invalid", format!("{place}: {reason}"))
        })?);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_variables_or_comments() {
        let read = |text: &str| lines(Path::new(".env"), text);
        let all = read("# one\n\nA=1\n  B= two words \nC='3'\nD=\nPATH\n").unwrap();
        let all: Vec<(&str, &str)> = all.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        let path = std::env::var("PATH").unwrap();
        assert_eq!(all, [("A", "1"), ("B", " two words "), ("C", "'3'"), ("D", ""), ("PATH", &path)]);
        for (text, place) in [
            ("=x", "line 1"),
            ("A=1\nNO_SUCH_VARIABLE_HERE", "line 2"),
            ("export A=1", "line 1"),
            ("A =1", "line 1"),
        ] {
            assert!(read(text).unwrap_err().detail().starts_with(&format!("{place} of .env: ")), "{text}");
        }
    }
}
