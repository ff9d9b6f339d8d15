//! The table of drivers in `docs/drivers.md` is what the drivers say of themselves. `MICROVM_UPDATE_SNAPSHOTS=1` writes it
//! anew.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use microvm_driver_fake::Character;
use microvm_driver_qemu::Qemu;
use microvm_ports::capabilities;

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/drivers.md");
const BEGIN: &str = "<!-- table of drivers: generated -->\n";
const END: &str = "<!-- end of the table -->";

#[test]
fn committed_table_of_drivers_is_what_they_say() {
    let mut drivers = vec![("qemu", Qemu::abilities())];
    drivers.extend(Character::ALL.map(|character| (character.name(), character.abilities())));
    let table = capabilities::table(&drivers);
    let document = std::fs::read_to_string(DOCUMENT).unwrap();
    let (before, rest) = document.split_once(BEGIN).unwrap();
    let (committed, after) = rest.split_once(END).unwrap();
    if std::env::var_os("MICROVM_UPDATE_SNAPSHOTS").is_some() {
        std::fs::write(DOCUMENT, format!("{before}{BEGIN}{table}{END}{after}")).unwrap();
        return;
    }
    assert_eq!(committed, table, "MICROVM_UPDATE_SNAPSHOTS=1 writes it anew");
}
