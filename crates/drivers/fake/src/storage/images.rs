//! Images: small files, and what is told about them.

use std::fs;

use async_trait::async_trait;
use camino::{Utf8Path, Utf8PathBuf};
use futures::StreamExt;
use microvm_ports::guest::ByteStream;
use microvm_ports::progress::Progress;
use microvm_ports::storage::{
    Additions, ChangedPath, ExtendedImage, FileSystem, ImageConfig, ImageInfo, ImageSource, ImageStore,
    Placement, RecipeFile, ResolvedImage, StorageError,
};
use microvm_types::Listed;
use microvm_types::image::RootChange;
use microvm_types::template::DiskFormat;

use crate::script::Operation;
use crate::storage::store::{FakeStorage, digest, io, lock};

/// Digest of an image: over its content and its configuration.
fn image_digest(data: &[u8], config: &ImageConfig) -> String {
    format!("sha256:{}", digest(format!("{} {config:?}", digest(data)).as_bytes()))
}

/// Digest of a file, or of all files below a folder with their names.
fn content(path: &Utf8Path) -> Result<String, StorageError> {
    if !path.is_dir() {
        return Ok(digest(&fs::read(path).map_err(io("reading", path))?));
    }
    let mut entries = Vec::new();
    for entry in path.read_dir_utf8().map_err(io("listing", path))? {
        let entry = entry.map_err(io("listing", path))?;
        entries.push(format!("{} {}", entry.file_name(), content(entry.path())?));
    }
    entries.sort_unstable();
    Ok(digest(entries.concat().as_bytes()))
}

/// A stream as one piece.
async fn gather(mut data: ByteStream) -> Result<Vec<u8>, StorageError> {
    let mut content = Vec::new();
    while let Some(piece) = data.next().await {
        let piece = piece.map_err(|error| StorageError::BadInput {
            what: "the stream".to_owned(),
            detail: error.to_string(),
        })?;
        content.extend_from_slice(&piece);
    }
    Ok(content)
}

impl FakeStorage {
    fn image_path(&self, digest: &str) -> Utf8PathBuf {
        self.shared.root.join("images").join(digest.trim_start_matches("sha256:"))
    }

    pub(crate) fn add(
        &self,
        name: &str,
        source: &str,
        config: &ImageConfig,
        data: &[u8],
    ) -> Result<ImageInfo, StorageError> {
        let digest = image_digest(data, config);
        let path = self.image_path(&digest);
        fs::write(&path, data).map_err(io("writing", &path))?;
        let mut images = lock(&self.shared.images);
        for image in images.values_mut() {
            image.names.retain(|other| other != name);
        }
        let created_ms = i64::try_from(images.len()).unwrap_or(i64::MAX);
        let info = images.entry(digest.clone()).or_insert_with(|| ImageInfo {
            digest,
            names: Vec::new(),
            file_system: FileSystem::Erofs,
            size: data.len() as u64,
            created_ms,
            source: source.to_owned(),
            config: config.clone(),
        });
        info.names.push(name.to_owned());
        Ok(info.clone())
    }

    fn find(&self, reference: &str) -> Result<ImageInfo, StorageError> {
        let images = lock(&self.shared.images);
        let all: Vec<ImageInfo> = images.values().cloned().collect();
        ImageInfo::find(&all, reference).cloned()
    }
}

#[async_trait]
impl ImageStore for FakeStorage {
    async fn images(&self) -> Result<Listed<ImageInfo>, StorageError> {
        let mut all: Vec<ImageInfo> = lock(&self.shared.images).values().cloned().collect();
        all.sort_by_key(|image| std::cmp::Reverse(image.created_ms));
        Ok(Listed { found: all, unreadable: lock(&self.shared.unreadable).clone() })
    }

    async fn image(&self, reference: &str) -> Result<ResolvedImage, StorageError> {
        let verdict = self.ask(Operation::Image, &self.shared.root).await?;
        let info = self.find(reference)?;
        let path = self.image_path(&info.digest);
        let data = fs::read(&path).map_err(io("reading", &path))?;
        let found = image_digest(&data, &info.config);
        if found != info.digest {
            let detail = format!("expected {}, found {found}", info.digest);
            return Err(StorageError::Damaged { what: format!("image {reference}"), detail });
        }
        verdict.finish().await;
        Ok(ResolvedImage { info, path })
    }

    async fn add_image(
        &self,
        name: &str,
        source: &ImageSource,
        files: &[RecipeFile],
        config: &ImageConfig,
        progress: Progress,
    ) -> Result<ImageInfo, StorageError> {
        progress.step("making up an image");
        let what = format!("{source:?}");
        if let ImageSource::Path { path } = source
            && !path.exists()
        {
            return Err(StorageError::BadInput {
                what: path.to_string(),
                detail: "it does not exist".to_owned(),
            });
        }
        self.add(name, &what, config, format!("{what} {files:?}").as_bytes())
    }

    async fn add_image_from_stream(
        &self,
        name: &str,
        description: &str,
        config: &ImageConfig,
        data: ByteStream,
        progress: Progress,
    ) -> Result<ImageInfo, StorageError> {
        progress.step("making up an image");
        let content = gather(data).await?;
        self.add(name, description, config, &content)
    }

    async fn add_layer(
        &self,
        name: &str,
        base: &str,
        description: &str,
        config: &ImageConfig,
        data: ByteStream,
        progress: Progress,
    ) -> Result<ImageInfo, StorageError> {
        let below = self.find(base)?;
        let config = below.config.with(config);
        self.add_image_from_stream(name, description, &config, data, progress).await
    }

    async fn disk_at(&self, path: &Utf8Path) -> Result<Option<DiskFormat>, StorageError> {
        // What is not there is told when it is added.
        let start = fs::read(path).unwrap_or_default();
        Ok(start.starts_with(b"QFI\xfb").then_some(DiskFormat::Qcow2))
    }

    async fn check_additions(&self, additions: &Additions) -> Result<(), StorageError> {
        let missing =
            |file: &&RecipeFile| file.source.as_ref().is_some_and(|source| !Utf8Path::new(source).exists());
        let not_there = |what: &str| {
            let detail = "it is not there".to_owned();
            Err(StorageError::BadInput { what: what.to_owned(), detail })
        };
        if let Some(file) = additions.files.iter().find(missing) {
            return not_there(file.source.as_deref().unwrap_or_default());
        }
        for placement in &additions.placements {
            let Placement::Copy(step) = placement else { continue };
            let context = Utf8Path::new(&step.context);
            if let Some(source) = step.sources.iter().find(|source| !context.join(source).exists()) {
                return not_there(&format!("{}: {source}", step.title));
            }
        }
        Ok(())
    }

    async fn extend_image(
        &self,
        name: &str,
        base: &str,
        additions: &Additions,
        config: &ImageConfig,
        progress: Progress,
    ) -> Result<ExtendedImage, StorageError> {
        progress.step("making up an image");
        let below = self.find(base)?;
        // One package of the fake's has scripts.
        let scripts = additions.packages.iter().any(|package| package == "with-scripts");
        let config = below.config.with(config);
        let info =
            self.add(name, "made up", &config, format!("{} {additions:?}", below.digest).as_bytes())?;
        let unfinished = if scripts { vec!["true".to_owned()] } else { Vec::new() };
        Ok(ExtendedImage { info, unfinished })
    }

    async fn name_image(&self, reference: &str, name: &str) -> Result<ImageInfo, StorageError> {
        let found = self.find(reference)?;
        let mut images = lock(&self.shared.images);
        for image in images.values_mut() {
            image.names.retain(|other| other != name);
        }
        let unknown = || StorageError::UnknownImage(reference.to_owned());
        let image = images.get_mut(&found.digest).ok_or_else(unknown)?;
        image.names.push(name.to_owned());
        Ok(image.clone())
    }

    async fn export_image(&self, reference: &str) -> Result<ByteStream, StorageError> {
        let info = self.find(reference)?;
        let path = self.image_path(&info.digest);
        let data = fs::read(&path).map_err(io("reading", &path))?;
        Ok(Box::pin(futures::stream::iter([Ok(data.into())])))
    }

    async fn export_files(
        &self,
        _what: &str,
        base: &str,
        layer: ByteStream,
    ) -> Result<ByteStream, StorageError> {
        self.find(base)?;
        let whole = gather(layer).await?;
        Ok(Box::pin(futures::stream::iter([Ok(whole.into())])))
    }

    async fn layer_changes(&self, base: &str, layer: ByteStream) -> Result<Vec<ChangedPath>, StorageError> {
        self.find(base)?;
        let whole = gather(layer).await?;
        let unreadable = |error: std::io::Error| StorageError::BadInput {
            what: "the layer".to_owned(),
            detail: error.to_string(),
        };
        let mut changes = Vec::new();
        for entry in tar::Archive::new(&whole[..]).entries().map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            let path = entry.path_bytes().into_owned();
            let path = path.strip_prefix(b"./").unwrap_or(&path);
            let path = path.strip_suffix(b"/").unwrap_or(path);
            // The fake's images have no files: all of a root is new.
            if !path.is_empty() {
                changes.push(ChangedPath::new(RootChange::Added, path));
            }
        }
        changes.sort_by(|one, other| one.bytes().cmp(other.bytes()));
        Ok(changes)
    }

    async fn build_key(
        &self,
        text: &str,
        files: &[RecipeFile],
        placements: &[Placement],
    ) -> Result<String, StorageError> {
        let mut key = format!("{text} {files:?}");
        // By what is in them: where a context stands is no part of what is built.
        for placement in placements {
            let Placement::Copy(step) = placement else { continue };
            for source in &step.sources {
                key += source;
                key += &content(&Utf8Path::new(&step.context).join(source))?;
            }
        }
        for source in files.iter().filter_map(|file| file.source.as_ref()) {
            let path = camino::Utf8Path::new(source);
            key += &digest(&fs::read(path).map_err(io("reading", path))?);
        }
        Ok(digest(key.as_bytes()))
    }

    async fn cached_build(&self, key: &str) -> Result<Option<String>, StorageError> {
        let found = lock(&self.shared.builds).get(key).cloned();
        Ok(found.filter(|digest| self.find(digest).is_ok()))
    }

    async fn remember_build(&self, key: &str, digest: &str) -> Result<(), StorageError> {
        lock(&self.shared.builds).insert(key.to_owned(), digest.to_owned());
        Ok(())
    }

    async fn remove_image(&self, reference: &str, in_use: &[String]) -> Result<(), StorageError> {
        let info = self.find(reference)?;
        let last = info.names.len() <= 1 || info.digest.starts_with(reference);
        if last && in_use.contains(&info.digest) {
            return Err(StorageError::InUse {
                name: format!("the image `{reference}`"),
                users: "VMs".to_owned(),
            });
        }
        let mut images = lock(&self.shared.images);
        if last {
            let path = self.image_path(&info.digest);
            fs::remove_file(&path).map_err(io("removing", &path))?;
            images.remove(&info.digest);
        } else if let Some(image) = images.get_mut(&info.digest) {
            image.names.retain(|name| name != reference);
        }
        Ok(())
    }

    async fn remove_image_name(&self, name: &str) -> Result<(), StorageError> {
        let info = self.find(name)?;
        if let Some(image) = lock(&self.shared.images).get_mut(&info.digest) {
            image.names.retain(|other| other != name);
        }
        Ok(())
    }

    async fn collect_garbage(&self, in_use: &[String]) -> Result<u64, StorageError> {
        let mut freed = 0;
        lock(&self.shared.images).retain(|digest, image| {
            let keep = !image.names.is_empty() || in_use.contains(digest);
            if !keep && fs::remove_file(self.image_path(digest)).is_ok() {
                freed += image.size;
            }
            keep
        });
        Ok(freed)
    }

    async fn clear_package_cache(&self) -> Result<u64, StorageError> {
        Ok(0)
    }

    async fn verify_all(&self, _progress: Progress) -> Result<Vec<String>, StorageError> {
        let mut wrong = Vec::new();
        for image in self.images().await?.found {
            if let Err(error) = self.image(&image.digest).await {
                wrong.push(error.to_string());
            }
        }
        Ok(wrong)
    }
}
