//! Health of the server and of its guests, through the client.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use microvm_api::CreateVm;
use microvm_api::exec::{CommandLine, Execute};
use microvm_client::Client;
use microvm_driver_fake::FakeStorage;
use microvm_types::guest::Verdict;
use microvm_types::{ErrorKind, Phase};

async fn create(client: &Client, name: &str) {
    let request = CreateVm { name: Some(name.parse().unwrap()), ..CreateVm::default() };
    client.create_vm(&request).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readiness_is_asked_of_every_component() {
    let storage = FakeStorage::furnished().unwrap();
    let server = support::serving(support::service_in(storage.clone()).await);
    let client = &server.client;
    assert_eq!(client.ready().await.unwrap().status, "ready");
    let health = client.health().await.unwrap();
    assert_eq!(health.status, Verdict::Healthy);
    let names: Vec<&str> = health.components.iter().map(|one| one.name.as_str()).collect();
    assert_eq!(names, ["store", "hypervisor", "disk", "guests"]);
    assert_eq!(client.health_of("disk").await.unwrap(), health.components[2]);
    let unknown = client.health_of("nothing").await.unwrap_err();
    assert_eq!((unknown.code(), unknown.kind()), ("component_not_found", ErrorKind::NotFound));

    storage.set_free(1 << 30);
    assert_eq!(client.health().await.unwrap().status, Verdict::Degraded);
    assert_eq!(client.ready().await.unwrap().status, "ready", "it still serves");
    storage.set_free(1 << 20);
    let refused = client.ready().await.unwrap_err();
    assert_eq!((refused.code(), refused.kind()), ("not_ready", ErrorKind::Unavailable));
    assert!(refused.to_string().contains("disk: 1"), "{refused}");
    assert_eq!(client.health().await.unwrap().status, Verdict::Unhealthy);
    // It lives, and tells what is wrong.
    assert_eq!(client.live().await.unwrap().status, "alive");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_health_of_all_guests_is_told_and_wakes_none() {
    let server = support::start().await;
    let client = &server.client;
    for name in ["dev", "held"] {
        create(client, name).await;
    }
    client.pause_vm(&"held".parse().unwrap()).await.unwrap();
    let all = client.health_of_guests().await.unwrap().vms;
    let told: Vec<_> = all.iter().map(|one| (one.name.as_str(), one.state, one.verdict)).collect();
    assert_eq!(told, [("dev", Phase::Running, Some(Verdict::Healthy)), ("held", Phase::Paused, None)]);
    assert!(all[0].round_trip_us.is_some() && all[0].health.is_some() && all[1].health.is_none());
    let one = client.guest_health(&"dev".parse().unwrap()).await.unwrap();
    assert_eq!(one.verdict, Verdict::Healthy);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_one_shot_command_has_300_seconds_and_tells_how_long_it_took() {
    let wish: Execute = serde_json::from_str(r#"{"command": "true"}"#).unwrap();
    assert_eq!(wish.timeout, 300);
    assert!(serde_json::from_str::<Execute>(r#"{"command": "true", "time_out": 3}"#).is_err());
    let server = support::start().await;
    create(&server.client, "dev").await;
    let execute = async |timeout| {
        let command = CommandLine::Arguments(vec!["true".to_owned()]);
        server.client.execute(&"dev".parse().unwrap(), &Execute { command, timeout, ..wish.clone() }).await
    };
    let done = execute(3600).await.unwrap();
    assert!(done.success && done.exit_code == 0);
    // The same time twice, in two units.
    let took = std::time::Duration::from_secs_f64(done.duration_seconds.as_f64());
    assert_eq!(took.as_millis(), u128::from(done.execution_time_ms));
    assert_eq!(execute(3601).await.unwrap_err().kind(), ErrorKind::Invalid);
}
