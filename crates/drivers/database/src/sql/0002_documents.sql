CREATE TABLE documents (
    kind TEXT NOT NULL,
    key TEXT NOT NULL,
    document TEXT NOT NULL,
    checksum TEXT NOT NULL,
    PRIMARY KEY (kind, key)
) STRICT;
