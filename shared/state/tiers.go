package state

import (
	"cmp"
	"slices"
	"time"
)

// States of a tier, as relocators report them.
const (
	TierOK         = "ok"
	TierFull       = "full"        // it takes no new copies
	TierReadOnly   = "read-only"   // its file system is
	TierFailing    = "failing"     // it cannot be written to, for another reason
	TierSuspect    = "suspect"     // it can be used, and has failed before
	TierAway       = "away"        // its disk is not mounted
	TierNoIdentity = "no-identity" // its level has no tier id: the tier was never made
	TierRefused    = "refused"     // something else is wrong with it, such as another tier's identity
	TierHanging    = "hanging"     // file operations there do not return
)

// tierStates has the worst state first.
var tierStates = []string{TierHanging, TierFailing, TierRefused, TierAway, TierNoIdentity, TierReadOnly, TierFull, TierSuspect, TierOK}

// CompareTierStates orders the states of tiers, the worst first. A state that this version does not know is worse than TierOK.
func CompareTierStates(a, b string) int { return cmp.Compare(tierRank(a), tierRank(b)) }

func tierRank(state string) int {
	if i := slices.Index(tierStates, state); i >= 0 {
		return 2 * i
	}
	return 2*len(tierStates) - 3
}

// TierFigures say how full the file system of a tier is.
type TierFigures struct {
	TotalBytes  int64 `json:"total_bytes,omitempty"` // 0: unknown; then all of them are
	UsedBytes   int64 `json:"used_bytes"`
	FreeBytes   int64 `json:"free_bytes"` // what a relocator may use, with what it leaves to others
	TotalInodes int64 `json:"total_inodes,omitempty"`
	FreeInodes  int64 `json:"free_inodes,omitempty"` // both are 0 where the file system has no fixed number of them
	AgeMS       int64 `json:"figures_age_ms"`        // how old they were when they were reported
}

// TierReport is a tier as a relocator sees it.
type TierReport struct {
	Level   string    `json:"level"`
	State   string    `json:"state"`
	Reason  string    `json:"reason,omitempty"` // why it is not TierOK, in words
	Since   time.Time `json:"since"`            // when it came into the state, by the relocator's clock
	Waiting int       `json:"waiting"`          // entries that wait for it there
	TierFigures
}

// Tier is a tier as all living relocators see it: the worst state, the newest figures, and the sum of what waits.
type Tier struct {
	TierReport
	Worker     string        // a relocator that reports this state
	Disagree   bool          // others report another one
	FiguresAge time.Duration // of the figures
}

// Tiers returns the tiers that living relocators report, by level.
func Tiers(services []Service) map[string]Tier {
	tiers := map[string]Tier{}
	for _, v := range services {
		if !v.Alive {
			continue
		}
		for _, r := range v.Tiers {
			one := Tier{TierReport: r, Worker: v.ID, FiguresAge: v.Age + time.Duration(r.AgeMS)*time.Millisecond}
			if known, ok := tiers[r.Level]; ok {
				one = known.and(one)
			}
			tiers[r.Level] = one
		}
	}
	return tiers
}

// and returns one of two views of a tier.
func (t Tier) and(o Tier) Tier {
	worst, other := t, o
	order := CompareTierStates(t.State, o.State)
	if order > 0 || order == 0 && o.Since.Before(t.Since) {
		worst, other = o, t
	}
	worst.Disagree = t.Disagree || o.Disagree || order != 0
	worst.Waiting += other.Waiting
	if other.TotalBytes > 0 && (worst.TotalBytes == 0 || other.FiguresAge < worst.FiguresAge) {
		worst.TierFigures, worst.FiguresAge = other.TierFigures, other.FiguresAge
	}
	return worst
}
