//! Operations: what a caller can ask of the engine, each with the permissions that it needs.

use crate::caller::{Caller, Permission};

/// One thing that a caller can ask of the engine. This table is the only place that ties permissions to operations: the
/// engine authorises by it, and the rows of the API name its entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct OperationName {
    name: &'static str,
    permission: Permission,
    further: Option<Permission>,
}

/// A second permission, where a line of the table names one.
macro_rules! further {
    () => {
        None
    };
    ($permission:ident) => {
        Some(Permission::$permission)
    };
}

/// Writes the table, so that name and permissions of each operation stand in one line.
macro_rules! operations {
    ($($constant:ident $name:literal $permission:ident $(and $further:ident)?,)*) => {
        impl OperationName {
            $(
                #[doc = concat!("`", $name, "`.")]
                pub const $constant: Self =
                    Self { name: $name, permission: Permission::$permission, further: further!($($further)?) };
            )*

            /// All operations, in the order of the API.
            pub const ALL: &[Self] = &[$(Self::$constant,)*];
        }
    };
}

operations! {
    VM_LIST "vm.list" VmRead,
    VM_CREATE "vm.create" VmCreate,
    VM_GET "vm.get" VmRead,
    VM_DELETE "vm.delete" VmDelete,
    VM_START "vm.start" VmOperate,
    VM_STOP "vm.stop" VmOperate,
    VM_PAUSE "vm.pause" VmOperate,
    VM_RESUME "vm.resume" VmOperate,
    VM_HIBERNATE "vm.hibernate" VmOperate,
    VM_RESIZE "vm.resize" VmOperate,
    VM_RESTART "vm.restart" VmOperate,
    VM_KILL "vm.kill" VmOperate,
    VM_RENAME "vm.rename" VmOperate,
    VM_UPDATE "vm.update" VmOperate,
    VM_WAIT "vm.wait" VmRead,
    VM_STATS "vm.stats" VmRead,
    VM_FORK "vm.fork" VmCreate,
    VM_EXPORT "vm.export" GuestFiles,
    VM_CHANGES "vm.changes" GuestFiles,
    VM_METRICS "vm.metrics" VmRead,
    VM_CONSOLE "vm.console" VmRead,
    GUEST_PING "guest.ping" GuestRead,
    GUEST_PING_BY_POST "guest.ping_by_post" GuestRead,
    GUEST_SYSTEM_INFO "guest.system_info" GuestRead,
    GUEST_PROCESSES "guest.processes" GuestRead,
    GUEST_HEALTH "guest.health" GuestRead,
    GUEST_START_COMMANDS "guest.start_commands" GuestRead,
    GUEST_HEALTH_OF_ALL "guest.health_of_all" VmRead,
    GUEST_SHUTDOWN "guest.shutdown" VmOperate,
    GUEST_EXECUTE "guest.execute" GuestExecute,
    GUEST_EXEC "guest.exec" GuestExecute,
    GUEST_SHELL "guest.shell" GuestExecute,
    GUEST_CONNECT "guest.connect" GuestExecute,
    PROCESS_LIST "process.list" GuestRead,
    PROCESS_SIGNAL "process.signal" GuestExecute,
    CONTEXT_LIST "context.list" GuestRead,
    CONTEXT_CREATE "context.create" GuestExecute,
    CONTEXT_REMOVE "context.remove" GuestExecute,
    CONTEXT_RESTART "context.restart" GuestExecute,
    CONTEXT_INTERRUPT "context.interrupt" GuestExecute,
    CONTEXT_EXECUTE "context.execute" GuestExecute,
    FILE_READ "file.read" GuestFiles,
    FILE_WRITE "file.write" GuestFiles,
    FILE_READ_ENCODED "file.read_encoded" GuestFiles,
    FILE_WRITE_ENCODED "file.write_encoded" GuestFiles,
    FILE_READ_EXTENTS "file.read_extents" GuestFiles,
    FILE_WRITE_EXTENTS "file.write_extents" GuestFiles,
    FILE_REMOVE "file.remove" GuestFiles,
    FILE_STAT "file.stat" GuestFiles,
    FILE_LIST "file.list" GuestFiles,
    FILE_HASH "file.hash" GuestFiles,
    FILE_MAKE_DIRECTORY "file.make_directory" GuestFiles,
    FILE_RENAME "file.rename" GuestFiles,
    FILE_WATCH "file.watch" GuestFiles,
    FILE_PULL "file.pull" GuestFiles,
    FILE_PUSH "file.push" GuestFiles,
    SNAPSHOT_LIST "snapshot.list" SnapshotRead,
    SNAPSHOT_STATISTICS "snapshot.statistics" SnapshotRead,
    SNAPSHOT_CLEAN_UP "snapshot.clean_up" SnapshotDelete,
    SNAPSHOT_IMPORT "snapshot.import" SnapshotCreate,
    SNAPSHOT_LIST_OF_VM "snapshot.list_of_vm" SnapshotRead,
    SNAPSHOT_CREATE "snapshot.create" SnapshotCreate,
    SNAPSHOT_GET "snapshot.get" SnapshotRead,
    SNAPSHOT_REMOVE "snapshot.remove" SnapshotDelete,
    SNAPSHOT_RESTORE "snapshot.restore" SnapshotCreate,
    SNAPSHOT_VERIFY "snapshot.verify" SnapshotRead,
    SNAPSHOT_EXPORT "snapshot.export" SnapshotRead,
    POOL_LIST "pool.list" VmRead,
    POOL_CREATE "pool.create" VmCreate,
    POOL_GET "pool.get" VmRead,
    POOL_REMOVE "pool.remove" VmDelete,
    POOL_RESIZE "pool.resize" VmOperate,
    POOL_ACQUIRE "pool.acquire" VmCreate,
    POOL_RELEASE "pool.release" VmDelete,
    EVENT_FOLLOW "event.follow" VmRead,
    EVENT_OF_SYSTEM "event.of_system" VmRead,
    EVENT_OF_VM "event.of_vm" VmRead,
    IMAGE_LIST "image.list" ImageRead,
    IMAGE_ADD "image.add" ImageWrite,
    IMAGE_PRUNE "image.prune" ImageWrite,
    IMAGE_COMMIT "image.commit" ImageWrite and GuestFiles,
    IMAGE_TAG "image.tag" ImageWrite,
    IMAGE_EXPORT "image.export" ImageRead and GuestFiles,
    IMAGE_GET "image.get" ImageRead,
    IMAGE_REMOVE "image.remove" ImageWrite,
    KERNEL_LIST "kernel.list" ImageRead,
    KERNEL_ADD "kernel.add" ImageWrite,
    KERNEL_GET "kernel.get" ImageRead,
    KERNEL_REMOVE "kernel.remove" ImageWrite,
    VOLUME_LIST "volume.list" VmRead,
    VOLUME_CREATE "volume.create" VmCreate,
    VOLUME_PRUNE "volume.prune" VmDelete,
    VOLUME_GET "volume.get" VmRead,
    VOLUME_REMOVE "volume.remove" VmDelete,
    TEMPLATE_LIST "template.list" ImageRead,
    TEMPLATE_GET "template.get" ImageRead,
    TEMPLATE_PUT "template.put" ImageWrite,
    TEMPLATE_REMOVE "template.remove" ImageWrite,
    TEMPLATE_VALIDATE "template.validate" ImageRead,
    TEMPLATE_GOLDEN "template.golden" SnapshotRead,
    TEMPLATE_UPDATE_GOLDEN "template.update_golden" SnapshotCreate,
    TEMPLATE_ROLL_BACK_GOLDEN "template.roll_back_golden" SnapshotCreate,
    SYSTEM_INFO "system.info" SystemRead,
    SYSTEM_DOCTOR "system.doctor" SystemRead,
    SYSTEM_VERIFY "system.verify" SystemRead,
    SYSTEM_METRICS "system.metrics" SystemRead,
    SYSTEM_DF "system.df" SystemRead,
    SYSTEM_PRUNE "system.prune" SystemOperate,
    SYSTEM_STOP "system.stop" SystemOperate,
    SYSTEM_LIVE "system.live" SystemRead,
    SYSTEM_HEALTH "system.health" SystemRead,
    SYSTEM_HEALTH_COMPONENT "system.health_component" SystemRead,
    SYSTEM_READY "system.ready" SystemRead,
    SYSTEM_OPENAPI "system.openapi" SystemRead,
}

impl OperationName {
    /// Name for audit, logs and metrics, for example `vm.create`. Never changed, never used again.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        self.name
    }

    /// The permission that a caller needs, the first of two where it needs two.
    #[must_use]
    pub const fn permission(self) -> Permission {
        self.permission
    }

    /// The second permission of an operation that works on things of two kinds: `image.commit` reads the files of a VM and
    /// makes an image of them.
    #[must_use]
    pub const fn further_permission(self) -> Option<Permission> {
        self.further
    }

    /// The first permission that a caller lacks for it.
    #[must_use]
    pub fn missing(self, caller: &Caller) -> Option<Permission> {
        [Some(self.permission), self.further].into_iter().flatten().find(|needed| !caller.may(*needed))
    }
}

impl std::fmt::Display for OperationName {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_there_once() {
        let mut names: Vec<&str> = OperationName::ALL.iter().map(|operation| operation.as_str()).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
