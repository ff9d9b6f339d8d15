//! A Debian package as a file: an `ar` archive of two tars (deb(5)).

use std::fs::File;
use std::io::{Read, Seek as _, SeekFrom};

use camino::{Utf8Path, Utf8PathBuf};
use microvm_durable::error::{bad_input, io_error};
use microvm_ports::StorageError;

use super::builder::Builder;
use super::compression::decompress;
use super::tar_image::{Whiteouts, add_tar, read_tar};

const MAGIC: &[u8] = b"!<arch>\n";
const HEADER: usize = 60;
/// Largest file of the control part that is kept.
const CONTROL_MAX: u64 = 16 << 20;
/// Files of the control part that run when the package is installed, or ask before.
const SCRIPTS: [&str; 4] = ["preinst", "postinst", "config", "templates"];

/// A package whose control part was read.
pub(super) struct Package {
    path: Utf8PathBuf,
    /// Its control file.
    control: String,
    /// The other files of the control part.
    files: Vec<(String, Vec<u8>)>,
    /// Place of the data: offset and length.
    data: (u64, u64),
}

impl Package {
    /// Reads the control part.
    pub(super) fn open(path: &Utf8Path) -> Result<Self, StorageError> {
        let what = path.file_name().unwrap_or("a package").to_owned();
        let wrong = |why: &str| bad_input(what.clone(), format!("it is no Debian package: {why}"));
        let mut file = File::open(path).map_err(io_error("opening", path))?;
        let mut magic = [0; 8];
        file.read_exact(&mut magic).map_err(|_| wrong("it is too short"))?;
        if magic != MAGIC {
            return Err(wrong("it is no archive"));
        }
        let (mut control, mut data, mut at) = (None, None, MAGIC.len() as u64);
        while data.is_none() {
            let mut header = [0; HEADER];
            file.seek(SeekFrom::Start(at)).map_err(io_error("reading", path))?;
            file.read_exact(&mut header).map_err(|_| wrong("it ends before its data"))?;
            let text =
                |range: std::ops::Range<usize>| String::from_utf8_lossy(&header[range]).trim().to_owned();
            let (name, length) =
                (text(0..16), text(48..58).parse::<u64>().map_err(|_| wrong("a length is none"))?);
            let start = at + HEADER as u64;
            match name.trim_end_matches('/') {
                name if name.starts_with("control.tar") => {
                    let part = (&file).take(length);
                    control = Some(read_control(&what, decompress(&what, part)?)?);
                }
                name if name.starts_with("data.tar") => data = Some((start, length)),
                _ => {}
            }
            // Parts of such an archive begin at even places.
            at = (start + length).next_multiple_of(2);
        }
        let (Some(mut files), Some(data)) = (control, data) else {
            return Err(wrong("it has no control part before its data"));
        };
        let control = files
            .iter()
            .position(|(name, _)| name == "control")
            .ok_or_else(|| wrong("it has no control file"))?;
        let control = String::from_utf8_lossy(&files.remove(control).1).trim_end().to_owned();
        Ok(Self { path: path.to_owned(), control, files, data })
    }

    /// A field of its control file.
    pub(super) fn field(&self, name: &str) -> Option<&str> {
        self.control.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
    }

    /// True if it is installed when its files are there: nothing of it has to run, and nobody waits for it but the cache of
    /// the dynamic loader, which finds libraries of Debian also without.
    pub(super) fn is_plain(&self) -> bool {
        self.files.iter().all(|(name, content)| {
            !SCRIPTS.contains(&&**name)
                && (name != "triggers"
                    || String::from_utf8_lossy(content).lines().map(str::trim).all(|line| {
                        line.is_empty() || line.starts_with('#') || line == "activate-noawait ldconfig"
                    }))
        })
    }

    /// Puts its files in and what dpkg notes about it; returns its stanza for dpkg's status file.
    pub(super) fn install(&self, builder: &mut Builder) -> Result<String, StorageError> {
        let name = self.field("Package").unwrap_or_default().to_owned();
        let what = format!("the package {name}");
        let mut list = String::from("/.\n");
        let data = || -> Result<_, StorageError> {
            let mut file = File::open(&self.path).map_err(io_error("opening", &self.path))?;
            file.seek(SeekFrom::Start(self.data.0)).map_err(io_error("reading", &self.path))?;
            decompress(&what, file.take(self.data.1))
        };
        // Once for the names, which dpkg keeps, and then once more for the files.
        let mut tar = read_tar(data()?);
        while let Some(entry) = tar.next_entry().map_err(|error| bad_input(&*what, error.to_string()))? {
            let path = String::from_utf8_lossy(&entry.path).into_owned();
            let path = path.trim_start_matches("./").trim_end_matches('/');
            if !path.is_empty() {
                list += &format!("/{path}\n");
            }
        }
        add_tar(builder, &what, data()?, Whiteouts::Package)?;
        // Several architectures of such a package may be installed, so dpkg tells their files apart.
        let own = if self.field("Multi-Arch") == Some("same") {
            format!("{name}:{}", self.field("Architecture").unwrap_or_default())
        } else {
            name
        };
        let info = format!("var/lib/dpkg/info/{own}");
        builder.put(&format!("{info}.list"), 0o644, list.as_bytes())?;
        let mut stanza = String::new();
        for line in self.control.lines() {
            stanza += &format!("{line}\n");
            if line.starts_with("Package:") {
                stanza += "Status: install ok installed\n";
            }
        }
        for (file, content) in &self.files {
            let script = matches!(&**file, "prerm" | "postrm");
            builder.put(&format!("{info}.{file}"), if script { 0o755 } else { 0o644 }, content)?;
            if file == "conffiles" {
                stanza += &self.conffiles(content)?;
            }
        }
        Ok(stanza)
    }

    /// The field of dpkg's status that has the MD5 sums of configuration files, taken from the package's own list.
    fn conffiles(&self, content: &[u8]) -> Result<String, StorageError> {
        let sums = self.files.iter().find(|(name, _)| name == "md5sums").map(|(_, sums)| sums.clone());
        let sums = String::from_utf8_lossy(&sums.unwrap_or_default()).into_owned();
        let mut field = String::new();
        for path in String::from_utf8_lossy(content).lines().filter(|line| line.starts_with('/')) {
            let sum =
                sums.lines().find_map(|line| line.split_once("  ").filter(|(_, name)| *name == &path[1..]));
            // dpkg's own word for a file whose sum it does not know: it asks before it replaces it.
            field += &format!(" {path} {}\n", sum.map_or("newconffile", |(sum, _)| sum));
        }
        Ok(if field.is_empty() { field } else { format!("Conffiles:\n{field}") })
    }
}

fn read_control(what: &str, reader: impl Read) -> Result<Vec<(String, Vec<u8>)>, StorageError> {
    let wrong = |error: std::io::Error| bad_input(what, error.to_string());
    let mut tar = read_tar(reader);
    let mut files = Vec::new();
    while let Some(entry) = tar.next_entry().map_err(wrong)? {
        let name = String::from_utf8_lossy(&entry.path).trim_start_matches("./").to_owned();
        if !entry.kind.is_file() || name.contains('/') || name.is_empty() {
            continue;
        }
        let mut content = Vec::new();
        (&mut tar).take(CONTROL_MAX.min(entry.size)).read_to_end(&mut content).map_err(wrong)?;
        files.push((name, content));
    }
    Ok(files)
}
