-- The id in `views` of the entry whose count view_count is; '' is unknown, and older than any. A count is written only over
-- an older one. The column is the last one, so MySQL and MariaDB add it without copying the table. MySQL has no ADD COLUMN IF
-- NOT EXISTS, and an interrupted migration runs again: hence the prepared statement.

-- +goose NO TRANSACTION
-- +goose Up
SET @tierflow_add = (SELECT IF(COUNT(*) > 0, 'DO 0',
  'ALTER TABLE contents ADD COLUMN count_entry VARCHAR(41) CHARACTER SET ascii COLLATE ascii_bin NOT NULL DEFAULT ''''')
  FROM information_schema.columns WHERE table_schema = DATABASE() AND table_name = 'contents' AND column_name = 'count_entry');

PREPARE tierflow_add FROM @tierflow_add;

EXECUTE tierflow_add;

DEALLOCATE PREPARE tierflow_add;
