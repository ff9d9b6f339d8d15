//! Parameters in paths.

use std::fmt::Display;

use microvm_types::{ErrorKind, ProcessId, VmRef};
use serde_json::{Value, json};

use crate::problem::Problem;
use crate::query::encode_segment;

/// Why a segment of a path cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct PathError {
    /// Stable code, for example `port_invalid`.
    pub code: &'static str,
    /// Reason.
    pub detail: String,
}

impl From<PathError> for Problem {
    fn from(error: PathError) -> Self {
        Self::new(ErrorKind::Invalid, error.code, error.detail)
    }
}

/// One parameter of a path.
pub trait Segment: Sized + Display + Send + 'static {
    /// Name between the braces.
    const NAME: &'static str;
    /// What it is.
    const ABOUT: &'static str;
    /// Regular expression of its text; empty: anything but nothing.
    const PATTERN: &'static str = "";

    /// Reads its decoded text.
    ///
    /// # Errors
    /// [`PathError`] if it is something else.
    fn read(text: &str) -> Result<Self, PathError>;
}

/// All parameters of a path: nothing, one [`Segment`] or two.
pub trait PathParameters: Sized + Send + 'static {
    /// Names between the braces, in order.
    const NAMES: &'static [&'static str];

    /// Reads the decoded texts, in the order of the path.
    ///
    /// # Errors
    /// [`PathError`] if one of them is something else, or missing.
    fn read<'a>(texts: impl Iterator<Item = &'a str>) -> Result<Self, PathError>;

    /// The encoded texts, in order.
    fn write(&self) -> Vec<String>;

    /// They as parameters of an OpenAPI operation.
    fn describe() -> Vec<Value>;
}

fn next<'a, A: Segment>(texts: &mut impl Iterator<Item = &'a str>) -> Result<A, PathError> {
    let missing =
        || PathError { code: "path_invalid", detail: format!("the path has no segment `{}`", A::NAME) };
    A::read(texts.next().ok_or_else(missing)?)
}

fn describe<A: Segment>() -> Value {
    let mut schema = json!({ "type": "string", "minLength": 1 });
    if !A::PATTERN.is_empty() {
        schema["pattern"] = A::PATTERN.into();
    }
    json!({ "name": A::NAME, "in": "path", "required": true, "description": A::ABOUT, "schema": schema })
}

fn write(segment: &impl Segment) -> String {
    encode_segment(&segment.to_string())
}

impl PathParameters for () {
    const NAMES: &'static [&'static str] = &[];

    fn read<'a>(_texts: impl Iterator<Item = &'a str>) -> Result<Self, PathError> {
        Ok(())
    }

    fn write(&self) -> Vec<String> {
        Vec::new()
    }

    fn describe() -> Vec<Value> {
        Vec::new()
    }
}

impl<A: Segment> PathParameters for A {
    const NAMES: &'static [&'static str] = &[A::NAME];

    fn read<'a>(mut texts: impl Iterator<Item = &'a str>) -> Result<Self, PathError> {
        next(&mut texts)
    }

    fn write(&self) -> Vec<String> {
        vec![write(self)]
    }

    fn describe() -> Vec<Value> {
        vec![describe::<A>()]
    }
}

impl<A: Segment, B: Segment> PathParameters for (A, B) {
    const NAMES: &'static [&'static str] = &[A::NAME, B::NAME];

    fn read<'a>(mut texts: impl Iterator<Item = &'a str>) -> Result<Self, PathError> {
        Ok((next(&mut texts)?, next(&mut texts)?))
    }

    fn write(&self) -> Vec<String> {
        vec![write(&self.0), write(&self.1)]
    }

    fn describe() -> Vec<Value> {
        vec![describe::<A>(), describe::<B>()]
    }
}

impl Segment for VmRef {
    const NAME: &'static str = "vm";
    const ABOUT: &'static str = "Id or name of a VM.";
    const PATTERN: &'static str = "^[a-zA-Z0-9_-]{1,64}$";

    fn read(text: &str) -> Result<Self, PathError> {
        text.parse().map_err(|error: microvm_types::NameError| PathError {
            code: "vm_name_invalid",
            detail: error.to_string(),
        })
    }
}

impl Segment for ProcessId {
    const NAME: &'static str = "process";
    const ABOUT: &'static str = "Id of a process that was started through the agent.";
    const PATTERN: &'static str = "^[a-z0-9]{20}$";

    fn read(text: &str) -> Result<Self, PathError> {
        text.parse().map_err(|error: microvm_types::id::IdError| PathError {
            code: "process_id_invalid",
            detail: error.to_string(),
        })
    }
}

/// A TCP port of a guest, 1 to 65535.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Port(pub u16);

impl Display for Port {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(formatter)
    }
}

impl Segment for Port {
    const NAME: &'static str = "port";
    const ABOUT: &'static str = "A TCP port of the guest's loopback interface, 1 to 65535.";
    const PATTERN: &'static str = "^[0-9]{1,5}$";

    fn read(text: &str) -> Result<Self, PathError> {
        text.parse().ok().filter(|&port: &u16| port != 0).map(Self).ok_or_else(|| PathError {
            code: "port_invalid",
            detail: format!("`{text}` is not a port: there are 1 to 65535"),
        })
    }
}

/// Segments that core looks up and judges itself.
macro_rules! references {
    ($($(#[$doc:meta])* $type:ident, $name:literal, $about:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct $type(pub String);

        impl Display for $type {
            fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str(&self.0)
            }
        }

        impl From<&str> for $type {
            fn from(text: &str) -> Self {
                Self(text.to_owned())
            }
        }

        impl Segment for $type {
            const NAME: &'static str = $name;
            const ABOUT: &'static str = $about;

            fn read(text: &str) -> Result<Self, PathError> {
                Ok(Self(text.to_owned()))
            }
        }
    )*};
}

references! {
    /// The VM that a snapshot was taken of, which may be gone.
    SnapshotVm, "vm", "Id or name of the VM that the snapshot was taken of, which may be gone; `-` for any VM.";
    /// A snapshot.
    SnapshotRef, "snapshot", "Id or name of a snapshot.";
    /// A component of the server.
    ComponentRef, "component", "Name of a component of the server.";
    /// A pool.
    PoolRef, "pool", "Name of a pool.";
    /// An image.
    ImageRef, "name", "Name or digest of an image.";
    /// A kernel.
    KernelRef, "name", "Name of a kernel; `default` for the one that is used where none is named.";
    /// A volume.
    VolumeRef, "name", "Name or id of a volume.";
    /// A template.
    TemplateRef, "name", "Name of a template.";
}

impl SnapshotVm {
    /// In place of a VM: whichever VM the snapshot was taken of.
    pub const ANY: &'static str = "-";

    /// Any VM.
    #[must_use]
    pub fn any() -> Self {
        Self(Self::ANY.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_read_written_and_refused() {
        let read = <(VmRef, Port)>::read(["dev", "80"].into_iter()).unwrap();
        assert_eq!(read, ("dev".parse().unwrap(), Port(80)));
        assert_eq!(read.write(), ["dev", "80"]);
        let code = |texts: &[&str]| <(VmRef, Port)>::read(texts.iter().copied()).unwrap_err().code;
        assert_eq!(code(&["a b", "80"]), "vm_name_invalid");
        assert_eq!(code(&["a", "0"]), "port_invalid");
        assert_eq!(code(&["a"]), "path_invalid");
        assert_eq!(ImageRef::from("a/b c:1").write(), ["a%2Fb%20c%3A1"]);
    }
}
