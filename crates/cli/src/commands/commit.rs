//! `microvm commit`: an image of what a VM has changed.

use clap::Args;
use microvm_api::image::{CommitImage, ImageConfig};
use microvm_types::VmRef;

use crate::commands::image::follow;
use crate::context::Context;
use crate::error::CliError;

/// Make an image of a running VM's disk
#[derive(Debug, Args)]
#[command(after_help = "\
The changes of the VM become a layer over its image, whose settings the new image has. The VM runs on; what writes to its disk waits
while the changes are read, so that they are all of one moment. Memory, /tmp in memory, shared folders and further disks are not in it.

Examples:
  microvm commit dev my-image
  microvm commit dev my-image --change 'CMD [\"python3\", \"/app/main.py\"]' --change 'ENV MODE=prod'")]
pub(crate) struct Commit {
    /// Name or id of the VM
    vm: VmRef,
    /// Name of the image
    image: String,
    /// Instruction that changes settings: CMD, ENTRYPOINT, ENV, USER or WORKDIR
    #[arg(short, long, value_name = "INSTRUCTION")]
    change: Vec<String>,
}

impl Commit {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let mut config = ImageConfig::default();
        for change in &self.change {
            apply(&mut config, change).map_err(|why| {
                CliError::invalid("change_invalid", format!("--change \"{change}\": {why}"))
            })?;
        }
        let request = CommitImage { vm: self.vm, name: self.image, config };
        let lines = context.client.commit(&request);
        follow(context, &request.name, lines).await?;
        Ok(0)
    }
}

/// Applies an instruction as a Dockerfile has it.
fn apply(config: &mut ImageConfig, change: &str) -> Result<(), String> {
    let (instruction, rest) =
        change.trim().split_once(char::is_whitespace).ok_or("an instruction has arguments")?;
    let rest = rest.trim();
    match &*instruction.to_ascii_uppercase() {
        "CMD" => config.command = words(rest)?,
        "ENTRYPOINT" => config.entrypoint = words(rest)?,
        "USER" => rest.clone_into(&mut config.user),
        "WORKDIR" => rest.clone_into(&mut config.working_directory),
        "ENV" => {
            let (name, value) = rest.split_once('=').ok_or("write ENV NAME=VALUE")?;
            config.environment.insert(name.to_owned(), value.trim_matches('"').to_owned());
        }
        other => return Err(format!("{other} is not known: CMD, ENTRYPOINT, ENV, USER and WORKDIR are")),
    }
    Ok(())
}

/// A JSON list of words, or a line for a shell.
fn words(text: &str) -> Result<Vec<String>, String> {
    if text.starts_with('[') {
        return serde_json::from_str(text).map_err(|error| format!("the list cannot be read: {error}"));
    }
    Ok(vec!["/bin/sh".to_owned(), "-c".to_owned(), text.to_owned()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_those_of_a_dockerfile_and_others_are_named() {
        let mut config = ImageConfig::default();
        for change in ["CMD [\"a\", \"b\"]", "entrypoint run it", "ENV A=b c", "USER app:app", "WORKDIR /x y"]
        {
            apply(&mut config, change).unwrap();
        }
        assert_eq!(config.command, ["a", "b"]);
        assert_eq!(config.entrypoint, ["/bin/sh", "-c", "run it"]);
        assert_eq!(
            (&*config.environment["A"], &*config.user, &*config.working_directory),
            ("b c", "app:app", "/x y")
        );
        for (bad, part) in
            [("LABEL a=b", "LABEL"), ("ENV A", "NAME=VALUE"), ("CMD [a]", "list"), ("CMD", "arguments")]
        {
            assert!(apply(&mut config, bad).unwrap_err().contains(part), "{bad}");
        }
    }
}
