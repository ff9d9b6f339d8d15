//! Making room: what goes, and what stays although nobody names it.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod support;

use std::sync::Arc;

use camino::Utf8Path;
use microvm_core::{ImageBase, ImageRecipe, Prunable, PruneExtent, SnapshotFilter};
use microvm_ports::storage::{Additions, ImageConfig, ImageInfo, ImageSource};
use microvm_ports::{ImageStore, Progress};
use microvm_types::{OperationName, StoredKind};
use support::{Host, named};

async fn image(host: &Host, name: &str, content: &str) -> ImageInfo {
    let folder = tempfile::tempdir().unwrap();
    let path = Utf8Path::from_path(folder.path()).unwrap().join("archive");
    std::fs::write(&path, content).unwrap();
    let source = ImageSource::Path { path };
    host.storage.add_image(name, &source, &[], &ImageConfig::default(), Progress::ignored()).await.unwrap()
}

/// Names of everything of one kind, sorted.
fn of(kind: StoredKind, all: &[Prunable]) -> Vec<&str> {
    let mut names: Vec<_> = all.iter().filter(|one| one.kind == kind).map(|one| one.name.as_str()).collect();
    names.sort_unstable();
    names
}

#[test]
fn what_nothing_holds_goes_and_everything_else_stays() {
    let host = Host::with_golden();
    let server = host.serve();
    let service = &server.service;
    server.run(async {
        let old = image(&host, "moved", "old").await;
        let new = image(&host, "moved", "new").await;
        let used = image(&host, "used", "used").await;
        let mut request = named("dev");
        request.overrides.image = Some("used".to_owned());
        service.vms.create(request).await.unwrap();
        service.vms.stop(&"dev".parse().unwrap(), false, None).await.unwrap();
        let goldens = || {
            let filter = SnapshotFilter { golden: true, ..SnapshotFilter::default() };
            service.snapshots.list(&filter).unwrap().len()
        };
        assert_eq!(goldens(), 1);

        let listed = service.host.prunable(PruneExtent::Unused, OperationName::SYSTEM_DF).await.unwrap();
        assert_eq!(of(StoredKind::Images, &listed), [old.digest.as_str()]);
        let listed = service.host.prunable(PruneExtent::All, OperationName::SYSTEM_DF).await.unwrap();
        assert_eq!(of(StoredKind::Images, &listed), ["moved", &old.digest]);
        assert_eq!(of(StoredKind::GoldenSnapshots, &listed).len(), 1);
        host.storage.image(&old.digest).await.unwrap();

        let done = service.host.prune(PruneExtent::Unused).await.unwrap();
        assert_eq!((of(StoredKind::Images, &done.removed), done.kept.len()), (vec![old.digest.as_str()], 0));
        host.storage.image(&old.digest).await.unwrap_err();
        assert_eq!(goldens(), 1);

        let done = service.host.prune(PruneExtent::All).await.unwrap();
        assert_eq!(of(StoredKind::Images, &done.removed), ["moved"]);
        assert_eq!((of(StoredKind::GoldenSnapshots, &done.removed).len(), goldens()), (1, 0));
        host.storage.image(&new.digest).await.unwrap_err();
        // That of a stopped VM, and that of a template.
        host.storage.image(&used.digest).await.unwrap();
        host.storage.image("debian-python").await.unwrap();
        // The VM starts, and the next one of its template makes a golden snapshot again.
        service.vms.start(&"dev".parse().unwrap()).await.unwrap();
        service.vms.create(named("next")).await.unwrap();
        assert_eq!(goldens(), 1);
        assert_eq!(service.host.prune(PruneExtent::Unused).await.unwrap().removed, []);
    });
}

#[test]
fn a_running_build_keeps_what_it_uses() {
    let host = Host::new();
    let server = host.serve();
    let service = &server.service;
    server.run(async {
        let base = image(&host, "base", "base").await;
        let started = Arc::new(tokio::sync::Notify::new());
        let heard = Arc::clone(&started);
        let progress = Progress::to(move |report| {
            if report.step.starts_with("starting a VM") {
                heard.notify_one();
            }
        });
        let recipe = ImageRecipe {
            name: "built".to_owned(),
            base: ImageBase::Image("base".to_owned()),
            additions: Additions::default(),
            commands: vec!["true".to_owned()],
            steps: Vec::new(),
            config: ImageConfig::default(),
            cache: false,
        };
        let build = service.catalog.build_image(&recipe, progress);
        tokio::pin!(build);
        tokio::select! {
            biased;
            () = started.notified() => {}
            built = &mut build => panic!("{built:?}"),
        }
        let done = service.host.prune(PruneExtent::All).await.unwrap();
        assert_eq!(of(StoredKind::Images, &done.removed), Vec::<&str>::new());
        assert!(done.kept[0].reason.contains("built"), "{:?}", done.kept);
        host.storage.image(&base.digest).await.unwrap();
        build.await.unwrap();
        let done = service.host.prune(PruneExtent::All).await.unwrap();
        assert_eq!(of(StoredKind::Images, &done.removed), ["base", "built"]);
        assert_eq!(done.kept, []);
    });
}
