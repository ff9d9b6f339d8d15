//! All SQL that is run after opening. Kept in one place, and plain, so that a second database needs one more file.

/// Adds a row.
pub(crate) const INSERT: &str = "INSERT INTO vms (id, tenant, name, created_ms, record_version, record, checksum) \
     VALUES ($1, $2, $3, $4, $5, $6, $7)";

/// Replaces all of a row but its id.
pub(crate) const UPDATE: &str = "UPDATE vms SET tenant = $2, name = $3, created_ms = $4, record_version = $5, \
     record = $6, checksum = $7 WHERE id = $1";

/// Removes a row.
pub(crate) const DELETE: &str = "DELETE FROM vms WHERE id = $1";

/// All rows in order of creation.
pub(crate) const ALL: &str = "SELECT id, tenant, name, created_ms, record_version, record, checksum FROM vms \
     ORDER BY created_ms, id";

/// Number of the two oldest tables that exist.
pub(crate) const OWN_TABLES: &str =
    "SELECT COUNT(*) FROM sqlite_master WHERE type = 'table' AND name IN ('schema_version', 'vms')";

/// Keeps a document.
pub(crate) const PUT_DOCUMENT: &str = "INSERT INTO documents (kind, key, document, checksum) VALUES ($1, $2, $3, $4) \
     ON CONFLICT (kind, key) DO UPDATE SET document = excluded.document, checksum = excluded.checksum";

/// Removes a document.
pub(crate) const DELETE_DOCUMENT: &str = "DELETE FROM documents WHERE kind = $1 AND key = $2";

/// All documents of a kind in order of their keys.
pub(crate) const DOCUMENTS: &str =
    "SELECT key, document, checksum FROM documents WHERE kind = $1 ORDER BY key";

/// Makes the table that says which schema a database has.
pub(crate) const CREATE_VERSION: &str =
    "CREATE TABLE IF NOT EXISTS schema_version (version INTEGER NOT NULL)";

/// The schema a database has; nothing in a new one.
pub(crate) const READ_VERSION: &str = "SELECT max(version) FROM schema_version";

/// Notes that a schema version was reached.
pub(crate) const WRITE_VERSION: &str = "INSERT INTO schema_version (version) VALUES ($1)";
