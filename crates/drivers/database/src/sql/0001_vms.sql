CREATE TABLE vms (
    id TEXT PRIMARY KEY NOT NULL,
    tenant TEXT NOT NULL,
    name TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    record_version INTEGER NOT NULL,
    record TEXT NOT NULL,
    checksum TEXT NOT NULL,
    CONSTRAINT vms_name UNIQUE (tenant, name)
) STRICT;
CREATE INDEX vms_created ON vms (created_ms, id);
