-- One row for each committed move. A row outlives its item, so nothing here refers to another table.

-- +goose NO TRANSACTION
-- +goose Up
CREATE TABLE IF NOT EXISTS update_history (
  id               BIGINT       NOT NULL AUTO_INCREMENT,
  event_id         CHAR(36)     CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  cid              BIGINT       NOT NULL,
  old_level        VARCHAR(64)  NOT NULL,
  new_level        VARCHAR(64)  NOT NULL,
  prev_update_time DATETIME(6)  NOT NULL,
  update_time      DATETIME(6)  NOT NULL,
  view_count       BIGINT       NOT NULL DEFAULT 0,
  bytes            BIGINT       NOT NULL DEFAULT 0,
  duration_us      BIGINT       NOT NULL DEFAULT 0,
  worker_id        VARCHAR(255) NOT NULL DEFAULT '',
  PRIMARY KEY (id),
  UNIQUE KEY update_history_event (event_id),
  KEY update_history_content (cid, id)
) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
