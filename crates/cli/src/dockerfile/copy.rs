//! `COPY` and `ADD`.

use microvm_api::image::CopyStep;
use parse_dockerfile::{Flag, Source as Word, UnescapedString};

use super::read::{flags, here_document};
use super::source::Source;
use super::variables::Variables;
use super::{Refusal, build};

/// Beginnings of sources that are no files.
const ADDRESSES: [&str; 7] = ["http://", "https://", "ftp://", "git://", "ssh://", "git@", "oci://"];

/// An instruction that copies.
pub(super) struct Copying<'c, 'a> {
    pub(super) line: usize,
    /// `COPY` or `ADD`.
    pub(super) name: &'static str,
    pub(super) flags: &'c [Flag<'a>],
    pub(super) sources: &'c [Word<'a>],
    pub(super) destination: &'c UnescapedString<'a>,
}

/// The step for an instruction.
pub(super) fn step(
    copying: &Copying<'_, '_>,
    source: &Source,
    variables: &Variables<'_>,
    directory: &str,
) -> Result<CopyStep, Refusal> {
    let &Copying { line, name, flags: given, sources, destination } = copying;
    let wrong = |why: String| Refusal::new(line, format!("{name}: {why}"));
    let is_add = name == "ADD";
    let (mut owner, mut mode) = (String::new(), None);
    for (flag, value) in flags(line, name, given, &["chown", "chmod"])? {
        let value = variables.expand(value).map_err(wrong)?;
        match flag {
            "chown" => owner = value,
            _ if value.bytes().all(|byte| (b'0'..=b'7').contains(&byte)) => mode = Some(value),
            _ => return Err(wrong(format!("--chmod={value} is not an octal number, such as 755"))),
        }
    }
    let mut paths = Vec::new();
    for word in sources {
        let Word::Path(path) = word else { return Err(here_document(line)) };
        let path = variables.expand(&path.value).map_err(wrong)?;
        if is_add && (ADDRESSES.iter().any(|start| path.starts_with(start)) || path.ends_with(".git")) {
            return Err(Refusal::unsupported(
                line,
                &format!("ADD of the address {path}"),
                "fetch it into the context, and COPY it",
            ));
        }
        if path.is_empty() {
            return Err(wrong("a source is empty; `.` is the context".to_owned()));
        }
        paths.push(path);
    }
    let written = variables.expand(&destination.value).map_err(wrong)?;
    let mut destination = build::join(directory, &written).map_err(wrong)?;
    let is_directory =
        written.is_empty() || written == "." || written.ends_with('/') || written.ends_with("/.");
    if is_directory && !destination.ends_with('/') {
        destination.push('/');
    }
    if paths.len() > 1 && !is_directory {
        return Err(wrong(format!("several sources go into a directory: {written} must end with a slash")));
    }
    Ok(CopyStep {
        title: build::title(line, &format!("{name} {} {written}", paths.join(" "))),
        context: source.context.clone(),
        ignored: source.ignored.clone(),
        sources: paths,
        destination,
        owner,
        mode,
        refuse_archives: is_add,
    })
}
