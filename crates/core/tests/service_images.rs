//! Images that are built with commands.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod support;

use microvm_core::{ImageBase, ImageRecipe};
use microvm_ports::storage::{ImageConfig, ImageSource};
use microvm_ports::{ImageStore, Progress};
use support::{Host, named};

#[test]
fn an_image_built_with_commands_is_the_base_with_the_recipe_over_it() {
    let host = Host::new();
    let server = host.serve();
    server.run(async {
        let list = |words: &str| words.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let first = ImageConfig {
            environment: [("A".to_owned(), "1".to_owned()), ("B".to_owned(), "1".to_owned())].into(),
            user: "nobody".to_owned(),
            entrypoint: list("/bin/serve -v"),
            command: list("all"),
            ..ImageConfig::default()
        };
        let build = async |name: &str, base: &str, config: ImageConfig| {
            let base = ImageBase::Image(base.to_owned());
            let recipe = ImageRecipe {
                name: name.to_owned(),
                base,
                files: Vec::new(),
                commands: list("true"),
                config,
            };
            server.service.catalog.build_image(&recipe, Progress::ignored()).await.unwrap().config
        };
        assert_eq!(build("first", "debian-python", first.clone()).await, first);
        // What is not said stays.
        let second =
            ImageConfig { environment: [("B".to_owned(), "2".to_owned())].into(), ..ImageConfig::default() };
        let built = build("second", "first", second).await;
        assert_eq!((built.environment["A"].as_str(), built.environment["B"].as_str()), ("1", "2"));
        assert_eq!(
            (&built.user, &built.entrypoint, &built.command),
            (&first.user, &first.entrypoint, &first.command)
        );
        // Arguments of another entry point are none of this one's; new ones are.
        let third = ImageConfig { entrypoint: list("/bin/other"), ..ImageConfig::default() };
        let built = build("third", "first", third).await;
        assert_eq!((built.entrypoint, built.command), (list("/bin/other"), Vec::new()));
        let fourth = ImageConfig { command: list("some"), ..ImageConfig::default() };
        let built = build("fourth", "first", fourth).await;
        assert_eq!((built.entrypoint, built.command), (list("/bin/serve -v"), list("some")));
    });
}

#[test]
fn the_base_of_a_build_that_is_also_the_image_of_a_vm_stays() {
    let host = Host::new();
    let server = host.serve();
    server.run(async {
        let (images, config) = (host.storage.clone(), ImageConfig::default());
        let folder = tempfile::tempdir().unwrap();
        let source = |name: &str| {
            let path = camino::Utf8Path::from_path(folder.path()).unwrap().join(name);
            std::fs::write(&path, name).unwrap();
            ImageSource::Path { path }
        };
        let add = async |source: ImageSource| {
            images.add_image("x", &source, &[], &config, Progress::ignored()).await.unwrap()
        };
        let old = add(source("old")).await;
        let mut request = named("dev");
        request.overrides.image = Some("x".to_owned());
        server.service.vms.create(request).await.unwrap();
        // The image has no name any more, and the VM goes on needing it.
        add(source("new")).await;
        let recipe = ImageRecipe {
            name: "built".to_owned(),
            base: ImageBase::Source(source("old")),
            files: Vec::new(),
            commands: vec!["true".to_owned()],
            config: config.clone(),
        };
        server.service.catalog.build_image(&recipe, Progress::ignored()).await.unwrap();
        let kept = images.image(&old.digest).await.unwrap().info;
        assert_eq!(kept.names, Vec::<String>::new());
        // Without anybody that needs it, the base goes with the build.
        server.service.vms.delete(&"dev".parse().unwrap()).await.unwrap();
        server.service.catalog.build_image(&recipe, Progress::ignored()).await.unwrap();
        images.image(&old.digest).await.unwrap_err();
    });
}
