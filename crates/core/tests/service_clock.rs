//! A guest that stood still is told the time, whatever made it run again.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod support;

use microvm_core::{ForkRequest, SnapshotRequest};
use microvm_driver_fake::{Fault, Operation};
use microvm_ports::Progress;
use microvm_types::VmRef;
use support::{Host, named, until};

fn vm(name: &str) -> VmRef {
    name.parse().unwrap()
}

#[test]
fn every_way_back_to_running_tells_the_time() {
    let host = Host::new();
    let server = host.serve();
    let told = || host.hypervisor.script().calls(Operation::TellTime);
    server.run(async {
        let service = &server.service;
        service.vms.create(named("dev")).await.unwrap();
        assert_eq!(told(), 0, "an identity has the time with it");
        service.vms.pause(&vm("dev")).await.unwrap();
        service.vms.resume(&vm("dev")).await.unwrap();
        assert_eq!(told(), 1);
        // The pause of a branch is short, but there may be thousands of them. Nobody waits for it.
        service.branches.fork(&vm("dev"), ForkRequest { count: 1, ..ForkRequest::default() }).await.unwrap();
        until("the source of a fork is told the time", || told() == 2).await;
        service.branches.snapshot(&vm("dev"), SnapshotRequest::default(), Progress::ignored()).await.unwrap();
        until("the source of a snapshot is told the time", || told() == 3).await;
        // What was to sleep, and goes on because that failed.
        host.storage.script().next(Operation::WriteSnapshot, Fault::Fail);
        service.vms.hibernate(&vm("dev")).await.unwrap_err();
        until("who stays awake is told the time", || told() == 4).await;
    });
}

#[test]
fn a_guest_that_cannot_be_told_runs_all_the_same() {
    let host = Host::new();
    let server = host.serve();
    server.run(async {
        let service = &server.service;
        service.vms.create(named("dev")).await.unwrap();
        service.vms.pause(&vm("dev")).await.unwrap();
        host.hypervisor.script().next(Operation::TellTime, Fault::Fail);
        service.vms.resume(&vm("dev")).await.unwrap();
        assert_eq!(support::say(service, "dev", "echo here").await, "here");
    });
}
