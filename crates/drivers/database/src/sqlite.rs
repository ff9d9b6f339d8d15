//! The store on one SQLite file.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use async_trait::async_trait;
use camino::Utf8Path;
use microvm_ports::{DocumentKind, StateError, StateStore, StoredDocuments, StoredVms};
use microvm_types::VmId;
use microvm_types::vm::VmRecord;
use rustix::fs::{CWD, FileType, Mode};
use rustix::io::Errno;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions as _, SqlitePool};

use crate::error::OpenError;
use crate::row::{Columns, Row, sum_of};
use crate::{migrations, queries};

/// Longest wait of a writer for another one. Writes take milliseconds; only a stuck disk takes this long.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// Between two attempts to switch a new file to the write-ahead log.
const BUSY_PAUSE: Duration = Duration::from_millis(10);

/// Connections: one writes (SQLite has one writer at a time), the others read meanwhile.
const CONNECTIONS: u32 = 4;

/// Rows in one SQLite file; cheap to clone, all clones share the connections.
#[derive(Debug, Clone)]
pub struct SqliteStore {
    pool: SqlitePool,
}

impl SqliteStore {
    /// Opens the database at `path`, made if missing (readable by its owner only), and brings it to the newest schema.
    ///
    /// # Errors
    /// See [`OpenError`]; a database of a newer schema is refused and not touched.
    pub async fn open(path: &Utf8Path) -> Result<Self, OpenError> {
        make_private(path).map_err(|source| OpenError::Create { path: path.to_owned(), source })?;
        let options = SqliteConnectOptions::new()
            .filename(path)
            .journal_mode(SqliteJournalMode::Wal)
            // Full: the log is synced at every commit, so a commit that was reported outlives a power cut.
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY_TIMEOUT);
        let pool =
            connect(options).await.map_err(|source| OpenError::Open { path: path.to_owned(), source })?;
        if let Err(error) = migrations::migrate(&pool, path).await {
            pool.close().await;
            return Err(error);
        }
        Ok(Self { pool })
    }

    /// True if the file at `path` is a database that a program of ours made: one with its tables. Changes nothing in it;
    /// whatever cannot be read is none of ours.
    pub async fn is_ours(path: &Utf8Path) -> bool {
        let options = SqliteConnectOptions::new().filename(path).read_only(true);
        // Without a write-ahead log beside it nothing needs to be made to read it.
        let options = options.immutable(!path.with_extension("sqlite-wal").exists());
        let Ok(mut connection) = options.connect().await else { return false };
        let tables: Result<i64, _> = sqlx::query_scalar(queries::OWN_TABLES).fetch_one(&mut connection).await;
        tables.is_ok_and(|count| count == 2)
    }

    /// Waits for running work and closes the file. Not needed for safety: nothing is held back in memory.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    async fn write(
        &self,
        sql: &'static str,
        action: &'static str,
        record: &VmRecord,
    ) -> Result<u64, StateError> {
        let row =
            Row::pack(record).map_err(|error| StateError::Database { action, source: Box::new(error) })?;
        let outcome = sqlx::query(sql)
            .bind(row.id)
            .bind(row.tenant)
            .bind(row.name)
            .bind(row.created_ms)
            .bind(row.record_version)
            .bind(row.record)
            .bind(row.checksum)
            .execute(&self.pool)
            .await;
        match outcome {
            Ok(done) => Ok(done.rows_affected()),
            // A clash of ids reports a primary key, not a unique violation, so this can only be the name.
            Err(sqlx::Error::Database(error)) if is_name_clash(error.as_ref()) => {
                Err(StateError::NameTaken(record.name.clone()))
            }
            Err(error) => Err(failed(action)(error)),
        }
    }
}

/// Connects, and waits for another program that is making the same database just now: `SQLite` does not wait by itself
/// when two switch a new file to the write-ahead log at once.
async fn connect(options: SqliteConnectOptions) -> Result<SqlitePool, sqlx::Error> {
    let deadline = tokio::time::Instant::now() + BUSY_TIMEOUT;
    loop {
        let pool = SqlitePoolOptions::new()
            .max_connections(CONNECTIONS)
            .acquire_timeout(BUSY_TIMEOUT)
            .connect_with(options.clone())
            .await;
        match pool {
            Err(error) if is_code(&error, BUSY) && tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(BUSY_PAUSE).await;
            }
            done => return done,
        }
    }
}

/// SQLite's extended result code for a violated UNIQUE constraint (`SQLITE_CONSTRAINT_UNIQUE`). A clash of primary
/// keys has its own code, 1555.
const CONSTRAINT_UNIQUE: &str = "2067";

fn is_name_clash(error: &dyn sqlx::error::DatabaseError) -> bool {
    error.code().as_deref() == Some(CONSTRAINT_UNIQUE)
}

/// SQLite's result code for a full disk (`SQLITE_FULL`).
const FULL: &str = "13";

/// SQLite's result code for a file that another one has locked (`SQLITE_BUSY`).
const BUSY: &str = "5";

fn is_code(error: &sqlx::Error, code: &str) -> bool {
    matches!(error, sqlx::Error::Database(found) if found.code().as_deref() == Some(code))
}

fn failed(action: &'static str) -> impl FnOnce(sqlx::Error) -> StateError {
    move |error| {
        if is_code(&error, FULL) {
            StateError::Full { action }
        } else {
            StateError::Database { action, source: Box::new(error) }
        }
    }
}

/// Makes the file before SQLite does, so that it is never readable by others, not even for a moment. SQLite gives its
/// log files the permissions of the database.
///
/// It is never opened here: closing any descriptor of a file drops all locks this process has on it, those of another
/// connection too.
fn make_private(path: &Utf8Path) -> std::io::Result<()> {
    let owner_only = Mode::RUSR | Mode::WUSR;
    match rustix::fs::mknodat(CWD, path.as_std_path(), FileType::RegularFile, owner_only, 0) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
}

#[async_trait]
impl StateStore for SqliteStore {
    async fn insert_vm(&self, record: &VmRecord) -> Result<(), StateError> {
        self.write(queries::INSERT, "adding a VM", record).await.map(drop)
    }

    async fn update_vm(&self, record: &VmRecord) -> Result<(), StateError> {
        match self.write(queries::UPDATE, "updating a VM", record).await? {
            0 => Err(StateError::Unknown(record.id.clone())),
            _ => Ok(()),
        }
    }

    async fn delete_vm(&self, id: &VmId) -> Result<(), StateError> {
        let outcome = sqlx::query(queries::DELETE).bind(id.as_str()).execute(&self.pool).await;
        outcome.map(drop).map_err(failed("removing a VM"))
    }

    async fn vms(&self) -> Result<StoredVms, StateError> {
        let rows: Vec<Columns> =
            sqlx::query_as(queries::ALL).fetch_all(&self.pool).await.map_err(failed("reading all VMs"))?;
        let mut stored = StoredVms::default();
        for columns in rows {
            match Row::from(columns).unpack() {
                Ok(record) => stored.records.push(record),
                // One damaged row must not hide the others.
                Err(StateError::Unreadable { id, reason }) => stored.unreadable.push((id, reason)),
                Err(error) => return Err(error),
            }
        }
        Ok(stored)
    }

    async fn put_document(
        &self,
        kind: DocumentKind,
        key: &str,
        document: &serde_json::Value,
    ) -> Result<(), StateError> {
        let text = document.to_string();
        let checksum = sum_of(&[kind.as_str(), key, &text]);
        let put = sqlx::query(queries::PUT_DOCUMENT).bind(kind.as_str()).bind(key).bind(text).bind(checksum);
        put.execute(&self.pool).await.map(drop).map_err(failed("keeping a document"))
    }

    async fn delete_document(&self, kind: DocumentKind, key: &str) -> Result<(), StateError> {
        let delete = sqlx::query(queries::DELETE_DOCUMENT).bind(kind.as_str()).bind(key);
        delete.execute(&self.pool).await.map(drop).map_err(failed("removing a document"))
    }

    async fn documents(&self, kind: DocumentKind) -> Result<StoredDocuments, StateError> {
        let rows: Vec<(String, String, String)> = sqlx::query_as(queries::DOCUMENTS)
            .bind(kind.as_str())
            .fetch_all(&self.pool)
            .await
            .map_err(failed("reading documents"))?;
        let mut stored = StoredDocuments::default();
        for (key, text, checksum) in rows {
            if checksum != sum_of(&[kind.as_str(), &key, &text]) {
                let reason = "its checksum does not fit its content, the row is damaged".to_owned();
                stored.unreadable.push((key, reason));
                continue;
            }
            match serde_json::from_str(&text) {
                Ok(document) => stored.documents.push((key, document)),
                Err(error) => stored.unreadable.push((key, error.to_string())),
            }
        }
        Ok(stored)
    }
}
