package httpapi

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"io"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/tierflow/tierflow/api/client"
	"github.com/tierflow/tierflow/api/internal/lookup"
	"github.com/tierflow/tierflow/api/internal/reevaluate"
	"github.com/tierflow/tierflow/shared/event"
	"github.com/tierflow/tierflow/shared/fault"
	"github.com/tierflow/tierflow/shared/item"
	"github.com/tierflow/tierflow/shared/state"
)

const (
	// maxLine is the maximum length of a line of a batch in bytes, without its end.
	maxLine = 4 << 10
	// batchPart is how many lines are looked up and appended at once. Memory does not grow with the body.
	batchPart = 512
	// maxRefused is how many refused lines the answer lists.
	maxRefused = 1000
	// patience is how long a batch may stay silent.
	patience = 30 * time.Second
)

func (s *Server) postViews(c echo.Context) error {
	if _, err := query(c); err != nil {
		return err
	}
	kind, err := mediaType(c.Request(), jsonType, ndjsonType)
	if err != nil {
		return err
	}
	if kind == ndjsonType {
		return s.postBatch(c)
	}
	b, err := readBody(c.Request(), nil)
	if err != nil {
		return err
	}
	id, count, err := parseView(kind, b)
	if err != nil {
		return err
	}
	found, err := s.Lookup.Find(c.Request().Context(), id)
	if err != nil {
		return err
	}
	v := reevaluate.NewView(found.Row, found.Policy, count)
	if err := s.Ingest.Append(v); err != nil {
		return err
	}
	return c.JSON(http.StatusAccepted, client.Accepted{EventID: v.EventID, Status: string(state.NewState(v).Status), Target: v.Target})
}

// batchError is the error of a batch that broke off, with what had become of it.
type batchError struct {
	error
	client.Batch
}

// batch is the state of a batch while it is read.
type batch struct {
	server *Server
	client.Batch
	line    int64 // the last line that was read
	done    int64 // up to this line every line was accepted or refused
	ids     []item.ID
	counts  []item.Count
	lines   []int64
	views   []event.View
	refused []client.Refusal // of this part, in no order
}

var readers = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, 64<<10) }}

// postBatch reads view events line by line and appends them part by part. It appends what has arrived before it waits for
// more. A refused line does not stop the others.
func (s *Server) postBatch(c echo.Context) error {
	r := readers.Get().(*bufio.Reader)
	defer func() {
		r.Reset(nil)
		readers.Put(r)
	}()
	r.Reset(patient{c.Request().Body, http.NewResponseController(c.Response())})
	b := &batch{server: s, Batch: client.Batch{Refused: []client.Refusal{}}}
	for {
		if len(b.ids) == batchPart || len(b.refused) >= batchPart || !buffered(r) {
			if err := b.flush(c); err != nil {
				return b.fail(c, err)
			}
		}
		line, err := readLine(r)
		if err != nil && err != io.EOF && err != bufio.ErrBufferFull {
			if ferr := b.flush(c); ferr != nil {
				return b.fail(c, ferr)
			}
			return b.fail(c, readError(err))
		}
		if err == io.EOF && len(line) == 0 {
			break
		}
		b.take(line, err == bufio.ErrBufferFull)
	}
	if err := b.flush(c); err != nil {
		return b.fail(c, err)
	}
	return c.JSON(http.StatusOK, b.Batch)
}

// patient extends the deadlines of the request at each read: a batch may take any time as long as lines arrive.
type patient struct {
	from io.Reader
	rc   *http.ResponseController
}

func (p patient) Read(b []byte) (int, error) {
	end := time.Now().Add(patience)
	if err := errors.Join(p.rc.SetReadDeadline(end), p.rc.SetWriteDeadline(end.Add(writeTimeout))); err != nil {
		return 0, err
	}
	return p.from.Read(b)
}

// buffered reports whether the next line can be read without waiting.
func buffered(r *bufio.Reader) bool {
	b, _ := r.Peek(r.Buffered())
	return bytes.IndexByte(b, '\n') >= 0
}

// readLine reads up to the next newline or the end. bufio.ErrBufferFull means that the line was far too long, and is skipped.
func readLine(r *bufio.Reader) ([]byte, error) {
	line, err := r.ReadSlice('\n')
	if err != bufio.ErrBufferFull {
		return line, err
	}
	for err == bufio.ErrBufferFull {
		_, err = r.ReadSlice('\n')
	}
	if err != nil && err != io.EOF {
		return nil, err
	}
	return nil, bufio.ErrBufferFull
}

// take parses one line.
func (b *batch) take(line []byte, long bool) {
	b.line++
	if b.line == 1 {
		line = bytes.TrimPrefix(line, byteOrderMark)
	}
	line = bytes.TrimRight(line, "\r\n")
	if long || len(line) > maxLine {
		b.refuse(b.line, fault.New(fault.TooLarge, "", "", errLine))
		return
	}
	if len(bytes.TrimLeft(line, jsonSpace)) == 0 {
		return
	}
	id, count, err := parseView(ndjsonType, line)
	if err != nil {
		b.refuse(b.line, err)
		return
	}
	b.ids, b.counts, b.lines = append(b.ids, id), append(b.counts, count), append(b.lines, b.line)
}

// byteOrderMark is what some programs write before the first line of a text in UTF-8.
var byteOrderMark = []byte("\ufeff")

var errLine = errors.New("the line has more than 4096 bytes")

func (b *batch) refuse(line int64, err error) {
	b.RefusedTotal++
	if len(b.Refused) < maxRefused { // which ones of this part come first is known at its end
		b.refused = append(b.refused, client.Refusal{Line: line, Type: client.ProblemType(fault.KindOf(err)), Detail: detail(err)})
	}
}

// flush looks up and appends what was read since the last flush.
func (b *batch) flush(c echo.Context) error {
	var err error
	if len(b.ids) > 0 {
		b.server.Lookup.FindMany(c.Request().Context(), b.ids, func(i int, f lookup.Found, ferr error) {
			if ferr != nil {
				b.refuse(b.lines[i], ferr)
				return
			}
			b.views = append(b.views, reevaluate.NewView(f.Row, f.Policy, b.counts[i]))
		})
		var n int
		n, err = b.server.Ingest.AppendAll(c.Request().Context(), b.views)
		b.Accepted += int64(n)
		clear(b.views)
		b.ids, b.counts, b.lines, b.views = b.ids[:0], b.counts[:0], b.lines[:0], b.views[:0]
	}
	if len(b.refused) > 0 {
		slices.SortFunc(b.refused, func(x, y client.Refusal) int { return cmp.Compare(x.Line, y.Line) })
		b.Refused = append(b.Refused, b.refused[:min(len(b.refused), maxRefused-len(b.Refused))]...)
		b.refused = b.refused[:0]
	}
	if err == nil {
		b.done = b.line
	}
	return err
}

// fail ends a batch before its end.
func (b *batch) fail(c echo.Context, err error) error {
	// On a connection that stays open the server would read the rest of the body before it answers.
	c.Response().Header().Set("Connection", "close")
	b.LinesDone = &b.done
	return &batchError{err, b.Batch}
}
