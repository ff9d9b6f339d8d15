//! Brings a database to the newest schema.

use camino::Utf8Path;
use sqlx::SqlitePool;

use crate::error::OpenError;
use crate::queries;

/// Steps by the version they lead to. A released step is never changed; a change is one more step.
const MIGRATIONS: &[(i64, &str)] =
    &[(1, include_str!("sql/0001_vms.sql")), (2, include_str!("sql/0002_documents.sql"))];

/// The newest schema version this program knows.
pub const SCHEMA_VERSION: i64 = MIGRATIONS[MIGRATIONS.len() - 1].0;

/// Runs the missing steps, all of them or none. Of two programs that open a new database at once one waits.
pub(crate) async fn migrate(pool: &SqlitePool, path: &Utf8Path) -> Result<(), OpenError> {
    let open = |source| OpenError::Open { path: path.to_owned(), source };
    // Immediate: takes the write lock before the version is read, so that nobody migrates between the two.
    let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await.map_err(open)?;
    sqlx::query(queries::CREATE_VERSION).execute(&mut *transaction).await.map_err(open)?;
    let found: Option<i64> =
        sqlx::query_scalar(queries::READ_VERSION).fetch_one(&mut *transaction).await.map_err(open)?;
    let found = found.unwrap_or(0);
    if found > SCHEMA_VERSION {
        return Err(OpenError::Newer { path: path.to_owned(), found, known: SCHEMA_VERSION });
    }
    for &(version, sql) in MIGRATIONS.iter().filter(|(version, _)| *version > found) {
        let failed = |source| OpenError::Migrate { path: path.to_owned(), version, source };
        sqlx::raw_sql(sql).execute(&mut *transaction).await.map_err(failed)?;
        sqlx::query(queries::WRITE_VERSION).bind(version).execute(&mut *transaction).await.map_err(failed)?;
    }
    transaction.commit().await.map_err(open)
}
