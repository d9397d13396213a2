package relocate_test

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tierflow/tierflow/relocator/internal/relocatortest"
	"github.com/tierflow/tierflow/relocator/internal/testdisk"
	"github.com/tierflow/tierflow/relocator/internal/tierhealth"
)

// Gold has no inode left, because somebody else has used them up. What is on gold can leave it, and so makes room.
func TestItemsLeaveATierThatHasNoInodeLeft(t *testing.T) {
	gold := t.TempDir()
	testdisk.Mount(t, gold, "-t", "tmpfs", "-o", "nr_inodes=100", "none")
	w := relocatortest.NewOn(t, gold)
	w.Run()
	const items = 20
	bodies := map[int][]byte{}
	for id := 1; id <= items; id++ {
		bodies[id] = w.Item(id, fmt.Sprintf("show/%d", id))
		w.Post(id, 5000)
	}
	w.Settled()
	fill := func() {
		for i := 0; ; i++ {
			err := os.WriteFile(fmt.Sprintf("%s/stranger-%d", gold, i), nil, 0o644)
			if errors.Is(err, unix.ENOSPC) {
				return
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	fill()
	// A move to gold fails meanwhile.
	newcomer := w.Item(99, "newcomer")
	w.Post(99, 6000)
	w.Eventually("gold is known to be full", func() error {
		if w.Tiers.Check(tierhealth.Need{Level: w.Level("gold"), Use: tierhealth.Write}) == nil {
			return errors.New("it does not rest")
		}
		return nil
	})
	for id := range bodies {
		w.Post(id, 1)
	}
	w.Eventually("all have left gold", func() error {
		fill() // whatever is freed is used up at once
		for id := range bodies {
			if level := w.Row(id).Level; level != "bronze" {
				return fmt.Errorf("item %d is on %s", id, level)
			}
			if _, err := os.Stat(fmt.Sprintf("%s/gold/show/%d", gold, id)); !os.IsNotExist(err) {
				return fmt.Errorf("the old copy of %d: %v", id, err)
			}
		}
		return nil
	})
	w.DeadLetters(0)
	for i := range 100 {
		if err := os.RemoveAll(fmt.Sprintf("%s/stranger-%d", gold, i)); err != nil {
			t.Fatal(err)
		}
	}
	w.Settled()
	w.Lies(99, "gold", newcomer)
	for id, body := range bodies {
		w.Lies(id, "bronze", body)
	}
}

func TestAnImmutableFileIsADeadLetterOfItsReleaseAndLeavesTheTierAlone(t *testing.T) {
	gold, _ := testdisk.Disk(t, "ext4", 32<<20)
	w := relocatortest.NewOn(t, gold)
	w.Run()
	body, other := w.Item(1, "a"), w.Item(2, "b")
	w.Post(1, 5000)
	w.Settled()
	testdisk.Run(t, "chattr", "+i", w.Roots["gold"]+"/a")
	defer testdisk.Run(t, "chattr", "-i", w.Roots["gold"]+"/a")
	w.Post(1, 1)
	dead := w.DeadLetters(1)[0].Values
	if dead["stage"] != "release" || dead["reason"] != "unsupported" || dead["attempts"] != "1" {
		t.Errorf("dead letter: %v", dead)
	}
	if err := errors.Join(w.Tiers.Problems(), w.Tiers.Check(tierhealth.Need{Level: w.Level("gold"), Use: tierhealth.Write})); err != nil {
		t.Errorf("the tier is blamed: %v", err)
	}
	w.Post(2, 5000)
	w.Settled()
	w.Lies(2, "gold", other)
	if w.Row(1).Level != "bronze" || len(body) == 0 {
		t.Errorf("the row names %s", w.Row(1).Level)
	}
}
