-- Every item and the level that it lies on. Only cid, content_level and filename have no default: operators insert rows by
-- hand. filename is compared byte by byte. A trailing space is refused, because this collation ignores it in comparisons.
-- The default times are in UTC whatever the session's time zone is.

-- +goose NO TRANSACTION
-- +goose Up
CREATE TABLE IF NOT EXISTS contents (
  cid           BIGINT       NOT NULL,
  content_level VARCHAR(64)  NOT NULL,
  filename      VARCHAR(700) NOT NULL,
  generate_time DATETIME(6)  NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
  update_time   DATETIME(6)  NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
  generation    BIGINT       NOT NULL DEFAULT 0,
  view_count    BIGINT       NOT NULL DEFAULT 0,
  size_bytes    BIGINT       NOT NULL DEFAULT 0,
  digest        VARCHAR(80)  NOT NULL DEFAULT '',
  pinned_level  VARCHAR(64)  NULL DEFAULT NULL,
  PRIMARY KEY (cid),
  UNIQUE KEY contents_filename (filename),
  KEY contents_level (content_level, cid),
  KEY contents_pinned (pinned_level),
  CONSTRAINT contents_on_level FOREIGN KEY (content_level) REFERENCES `level` (content_level),
  CONSTRAINT contents_pinned_to FOREIGN KEY (pinned_level) REFERENCES `level` (content_level),
  CONSTRAINT contents_cid CHECK (cid >= 1),
  CONSTRAINT contents_name CHECK (filename <> '' AND RIGHT(filename, 1) <> ' '),
  CONSTRAINT contents_counts CHECK (generation >= 0 AND view_count >= 0 AND size_bytes >= 0)
) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
