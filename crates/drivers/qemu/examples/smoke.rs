use microvm_driver_qemu::{Qemu, QemuConfig};
use microvm_ports::Hypervisor;
use microvm_ports::hypervisor::*;
use microvm_types::VmId;
use std::time::{Duration, Instant};
fn main() {
    if std::env::args().nth(1).as_deref() == Some(microvm_confinement::SUPERVISOR_COMMAND) {
        std::process::exit(if microvm_confinement::supervise() == std::process::ExitCode::SUCCESS {
            0
        } else {
            1
        });
    }
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let config =
            QemuConfig::new(camino::Utf8PathBuf::from_path_buf(std::env::current_exe().unwrap()).unwrap());
        let qemu = Qemu::new(config);
        let t = Instant::now();
        println!("{:#?} {:?}", qemu.probe().await.unwrap(), t.elapsed());
        let dir = camino::Utf8PathBuf::from("/tmp/smoke/vm");
        std::fs::create_dir_all(&dir).unwrap();
        let mem = camino::Utf8PathBuf::from("/tmp/smoke/zero.mem");
        std::fs::File::create(&mem).unwrap().set_len(256 << 20).unwrap();
        std::fs::set_permissions(&mem, std::os::unix::fs::PermissionsExt::from_mode(0o444)).unwrap();
        let spec = MachineSpec {
            id: VmId::from_parts(1, 2),
            name: "smoke".parse().unwrap(),
            vcpus: 1,
            memory_mib: 256,
            memory_base: mem,
            kernel: KernelBoot {
                kernel: "/tmp/k/vmlinux".into(),
                initramfs: "/tmp/smoke/initramfs".into(),
                discovery: DeviceDiscovery::CommandLine,
                arguments: vec![],
            },
            disks: vec![],
            directory: dir.clone(),
        };
        for _ in 0..3 {
            let t = Instant::now();
            let machine = qemu.launch(&spec).await.unwrap_or_else(|e| panic!("{e}"));
            println!("launched {:?} {:?}", t.elapsed(), machine.record());
            if std::env::args().nth(1).is_some() {
                tokio::time::sleep(Duration::from_secs(20)).await;
            }
            let t = Instant::now();
            machine.resume().await.unwrap();
            println!("resumed {:?}", t.elapsed());
            let mut s = machine.state();
            let _ = tokio::time::timeout(
                Duration::from_secs(8),
                s.wait_for(|s| matches!(s, MachineState::Exited(_))),
            )
            .await;
            println!("{:?} {:?}", machine.state().borrow().clone(), t.elapsed());
            println!("{:?}", machine.counters().await);
            println!("{:?}", machine.kill(Duration::from_secs(5)).await);
            println!("{}", String::from_utf8_lossy(&qemu.console(&dir, 800).await.unwrap()));
            qemu.sweep(&spec.id, &dir).await.unwrap();
        }
    });
}
