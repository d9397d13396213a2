-- A change of the levels whose items still have to be re-evaluated: one row, or none. change_id is new with each change.
-- before_levels has the levels before the first of these changes, as JSON. Items up to after_cid were re-evaluated.
-- 00007_review.sql renames the table. The check has no name: MySQL would keep it, and refuse it to a second table.

-- +goose NO TRANSACTION
-- +goose Up
CREATE TABLE IF NOT EXISTS appraisal (
  id            TINYINT     NOT NULL DEFAULT 1,
  change_id     CHAR(36)    CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  before_levels MEDIUMTEXT  NOT NULL,
  after_cid     BIGINT      NOT NULL DEFAULT 0,
  changed_at    DATETIME(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
  PRIMARY KEY (id),
  CHECK (id = 1)
) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
