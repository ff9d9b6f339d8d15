//! A record as the database holds it.

use microvm_ports::StateError;
use microvm_types::vm::VmRecord;
use sha2::{Digest, Sha256};

/// Format of the JSON. Raised when a change of [`VmRecord`] cannot be read by older code or the other way round.
const RECORD_VERSION: i64 = 1;

/// One row of the table of VMs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) id: String,
    pub(crate) tenant: String,
    pub(crate) name: String,
    pub(crate) created_ms: i64,
    pub(crate) record_version: i64,
    pub(crate) record: String,
    pub(crate) checksum: String,
}

/// The columns in the order in which the queries name them.
pub(crate) type Columns = (String, String, String, i64, i64, String, String);

impl From<Columns> for Row {
    fn from((id, tenant, name, created_ms, record_version, record, checksum): Columns) -> Self {
        Self { id, tenant, name, created_ms, record_version, record, checksum }
    }
}

impl Row {
    /// Packs a record.
    pub(crate) fn pack(record: &VmRecord) -> Result<Self, serde_json::Error> {
        let mut row = Self {
            id: record.id.to_string(),
            tenant: record.tenant.clone(),
            name: record.name.to_string(),
            created_ms: record.created_ms,
            record_version: RECORD_VERSION,
            record: serde_json::to_string(record)?,
            checksum: String::new(),
        };
        row.checksum = row.sum();
        Ok(row)
    }

    /// Unpacks the record after checking that nothing of the row has changed since it was packed.
    pub(crate) fn unpack(self) -> Result<VmRecord, StateError> {
        let unreadable = |reason: String| StateError::Unreadable { id: self.id.clone(), reason };
        if self.checksum != self.sum() {
            return Err(unreadable("its checksum does not fit its content, the row is damaged".to_owned()));
        }
        if self.record_version != RECORD_VERSION {
            return Err(unreadable(format!(
                "it has format {}, this program reads format {RECORD_VERSION}",
                self.record_version
            )));
        }
        serde_json::from_str(&self.record).map_err(|error| unreadable(error.to_string()))
    }

    /// SHA-256 over every column, each with its length before it so that no byte can move to a neighbour unnoticed.
    fn sum(&self) -> String {
        let (created, version) = (self.created_ms.to_string(), self.record_version.to_string());
        sum_of(&[&self.id, &self.tenant, &self.name, &created, &version, &self.record])
    }
}

/// SHA-256 over columns, each with its length before it.
pub(crate) fn sum_of(columns: &[&str]) -> String {
    let mut hash = Sha256::new();
    for column in columns {
        hash.update((column.len() as u64).to_le_bytes());
        hash.update(column.as_bytes());
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use microvm_conformance::state_store::sample_record;

    use super::*;

    #[test]
    fn any_changed_column_is_noticed() {
        let good = Row::pack(&sample_record(7, "seven")).unwrap();
        assert_eq!(good.clone().unpack().unwrap(), sample_record(7, "seven"));
        let changes: [fn(&mut Row); 6] = [
            |row| row.id.replace_range(0..1, "9"),
            |row| row.tenant.push('x'),
            |row| row.name.push('x'),
            |row| row.created_ms += 1,
            |row| row.record = row.record.replace("debian-python", "debian-pythom"),
            |row| row.checksum.replace_range(0..1, "z"),
        ];
        for (number, change) in changes.iter().enumerate() {
            let mut bad = good.clone();
            change(&mut bad);
            let error = bad.unpack().unwrap_err();
            assert!(matches!(error, StateError::Unreadable { .. }), "change {number}: {error}");
        }
    }

    #[test]
    fn a_newer_format_is_named_not_guessed() {
        let mut row = Row::pack(&sample_record(7, "seven")).unwrap();
        row.record_version = 2;
        row.checksum = row.sum();
        assert!(row.unpack().unwrap_err().to_string().contains("format 2"));
    }
}
