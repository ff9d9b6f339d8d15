//! Scripts of this host that are run in a VM.

use std::path::PathBuf;

use microvm_types::VmRef;
use microvm_types::files::FileOwner;

use crate::client::Client;
use crate::error::ClientError;
use crate::files::WriteFile;

/// Directory of scripts in a guest.
const FOLDER: &str = "/workspace";
/// Endings of scripts and their interpreters.
const INTERPRETERS: [(&str, &str); 3] = [("py", "python3"), ("js", "node"), ("sh", "sh")];
/// Permission bits of a script in a guest.
const MODE: u32 = 0o755;

/// A script of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Script {
    path: PathBuf,
    name: String,
    interpreter: &'static str,
}

impl Script {
    /// The script that a word names: a file of this host that ends in `.py`, `.js` or `.sh`.
    #[must_use]
    pub fn of(word: &str) -> Option<Self> {
        let path = PathBuf::from(word);
        let ending = path.extension()?.to_str()?;
        let (_, interpreter) = INTERPRETERS.iter().find(|(known, _)| *known == ending)?;
        let name = path.file_name()?.to_str()?.to_owned();
        // A word that ends like a script and is no file of this host is a program of the guest.
        path.is_file().then_some(Self { path, name, interpreter })
    }

    /// Whether a word looks like a script, there or not.
    #[must_use]
    pub fn is_meant(word: &str) -> bool {
        let ending = std::path::Path::new(word).extension();
        INTERPRETERS.iter().any(|(known, _)| ending.is_some_and(|ending| ending == *known))
    }

    /// Program and arguments that run it in a guest. A shell script whose first line names its interpreter chooses that.
    #[must_use]
    pub fn words(&self, arguments: &[String]) -> Vec<String> {
        let target = self.target();
        // `sh` would run a script for `bash` or `python` line by line as its own.
        let chooses =
            self.interpreter == "sh" && std::fs::read(&self.path).is_ok_and(|text| text.starts_with(b"#!"));
        let program = if chooses { vec![target] } else { vec![self.interpreter.to_owned(), target] };
        program.into_iter().chain(arguments.iter().cloned()).collect()
    }

    /// Copies it to `/workspace` of a guest, executable for all.
    ///
    /// # Errors
    /// If it cannot be read here or written there.
    pub async fn send(&self, client: &Client, vm: &VmRef, owner: &FileOwner) -> Result<(), ClientError> {
        let text =
            std::fs::read(&self.path).map_err(|error| ClientError::file("reading", &self.path, &error))?;
        let options =
            WriteFile { mode: Some(MODE), owner: Some(owner.clone()), parents: true, ..WriteFile::default() };
        let data = futures_util::stream::iter([Ok(bytes::Bytes::from(text))]);
        client.write_file(vm, self.target().as_bytes(), &options, data).await?;
        Ok(())
    }

    fn target(&self) -> String {
        format!("{FOLDER}/{}", self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_with_a_known_ending_is_a_script() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        for name in ["a.py", "b.sh", "c.txt", "plain"] {
            std::fs::write(path(name), "echo hi").unwrap();
        }
        std::fs::write(path("d.sh"), "#!/bin/bash\n").unwrap();
        std::fs::create_dir(path("folder.py")).unwrap();
        let words =
            |name: &str| Script::of(&path(name)).map(|script| script.words(&["-x".to_owned()]).join(" "));
        assert_eq!(words("a.py").as_deref(), Some("python3 /workspace/a.py -x"));
        assert_eq!(words("b.sh").as_deref(), Some("sh /workspace/b.sh -x"));
        assert_eq!(words("d.sh").as_deref(), Some("/workspace/d.sh -x"));
        for name in ["c.txt", "plain", "folder.py", "missing.py"] {
            assert_eq!(words(name), None, "{name}");
        }
    }
}
