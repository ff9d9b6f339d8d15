//! Archives and differences of VMs: in turns, which are taken before a guest stands still, and told whole.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "support/branches.rs"]
mod branches;
mod support;

use branches::vm;
use microvm_driver_fake::{Fault, Operation};
use microvm_types::ErrorKind;
use support::{Host, code, named, say};

#[test]
fn who_finds_all_turns_taken_is_refused_before_the_guest_is_asked() {
    let host = Host::new();
    let server = host.serve();
    let service = &server.service;
    server.run(async {
        service.vms.create(named("dev")).await.unwrap();
        let mut held = Vec::new();
        for _ in 0..3 {
            held.push(service.exports.vm(&vm("dev")).await.unwrap().data);
        }
        held.push(service.exports.image("debian-python").await.unwrap());
        let asked = || host.hypervisor.script().calls(Operation::PullLayer);
        assert_eq!(asked(), 3);
        let refused = service.exports.vm(&vm("dev")).await.unwrap_err();
        assert_eq!((refused.code(), refused.kind()), ("exports_busy", ErrorKind::Unavailable));
        assert!(refused.to_string().contains("4 exports"), "{refused}");
        assert_eq!(code(service.exports.changes(&vm("dev")).await), "exports_busy");
        assert_eq!(code(service.exports.image("debian-python").await.map(drop)), "exports_busy");
        assert_eq!(asked(), 3, "a guest whose turn does not come goes on");
        // Who drops its archive in the middle leaves its turn to the next.
        held.pop();
        service.exports.changes(&vm("dev")).await.unwrap();
        service.exports.changes(&vm("dev")).await.unwrap();
        held.push(service.exports.image("debian-python").await.unwrap());
        assert_eq!(code(service.exports.vm(&vm("dev")).await), "exports_busy");
    });
}

#[test]
fn an_export_that_fails_or_is_given_up_takes_no_turn_along() {
    let host = Host::new();
    let server = host.serve();
    let service = &server.service;
    server.run(async {
        service.vms.create(named("dev")).await.unwrap();
        for fault in [Fault::Fail, Fault::Hang] {
            for _ in 0..5 {
                host.hypervisor.script().next(Operation::PullLayer, fault);
                let dev = vm("dev");
                let export = service.exports.vm(&dev);
                let limited = tokio::time::timeout(std::time::Duration::from_millis(50), export).await;
                assert!(limited.is_err() || limited.unwrap().is_err(), "{fault:?}");
            }
        }
        service.exports.vm(&vm("dev")).await.unwrap();
    });
}

#[test]
fn differences_say_what_they_do_not_tell_of() {
    let host = Host::new();
    let server = host.serve();
    let service = &server.service;
    server.run(async {
        service.vms.create(named("dev")).await.unwrap();
        let found = service.exports.changes(&vm("dev")).await.unwrap();
        assert_eq!(found.left_out.unwrap().count, 0);
        say(service, "dev", "echo mine > /root/.wh.mine").await;
        let found = service.exports.changes(&vm("dev")).await.unwrap();
        let left_out = found.left_out.unwrap();
        assert_eq!((left_out.count, &*left_out.entries[0].path), (1, "/root/.wh.mine"));
        assert!(found.changes.iter().all(|changed| !changed.path.contains(".wh.")), "{:?}", found.changes);
    });
}
