/*
 * relocation.pml: the relocation protocol of one item, for the model checker Spin. docs/model/check runs it; README.md
 * lists the results. The model follows docs/design.md, "Protocol", step by step.
 *
 * The world. There are three tiers (0, 1, 2); the item starts on 0. Two or three view events are posted in order. Two
 * relocator workers each act as mover and as releaser. One or two committers, the sweep, Redis and MySQL complete it.
 * Every `::` line that changes something is one atomic step of the real system: one script of shared/state, one
 * statement or transaction of MySQL, or one operation of relocator/internal/fsys. Anything may happen to any process
 * between two steps.
 *
 * Faults. A process dies and forgets everything; its locks, files and entries stay. The lock of a living holder
 * expires. An entry that one process holds is delivered to another one as well. The reply of a script is lost, so the
 * script runs again. FAULTS limits how many of these one run may have, in any mixture. Pauses are free: a process that
 * takes no step is paused. A COMMIT whose reply is lost is a crash after the COMMIT.
 *  WIPE     Redis loses everything, once.
 *  SETBACK  with WIPE: the clock of the new Redis is so far back that its entry ids are lower than those of the old one.
 *  EXPIRE   a state that has an expiry may vanish at any time.
 *
 * What is simpler than in the code, and why that is safe.
 *  - A stream is a set. A second entry of an event joins the one that is pending, but an ack settles only the entry
 *    that its process has read (own, rown). The entry ids of an event's entries count as one id: the code appends an
 *    event again only where the state names it as the newest one.
 *  - A generation is a bit at every copy of the number: "this is still the row's". newGen() clears them all.
 *  - The two tokens of one event's emitted lock are the same here: a wrong unlock is an early expiry.
 *  - Bytes never change, and what was written is durable: relocator/internal/powercut tests power cuts. The grace may
 *    last for any time, or for none. A release that the code puts off, because the row was changed after its look-up,
 *    is a release that comes later here.
 *  - An attempt has the name of its worker. A crash turns its temporary or its folder into one without an owner.
 *  - The mover reads its source in one step. If a releaser has removed the source's name by then, the mover may have
 *    read a part (of a directory that is being deleted); otherwise it has read all of it. The comparison before an
 *    adoption and the check that both names are still there are one step; the code checks afterwards.
 *  - The check that the lock is still the worker's, before it writes a count, exists only with SETBACK, which needs it.
 *  - A batch (l_look and what follows) is one event. The code locks the row from its look-up to its write; here others may
 *    change it in between, and then its count is not written.
 *
 * What is checked.
 *  check()      at every change of the row or of files: some whole copy exists under some name, and the tier that the
 *               row names has the file (G1). With G1W a copy that is leaving that same tier counts as found.
 *  m_link       only a whole copy is published.
 *  G5           by the form of the transaction: history row and level are one step, guarded by both.
 *  NEWEST       at any time, without WIPE: the state names the newest event. If there is no state, the row has the
 *               count of the newest event. Re-evaluation and retried dead letters rely on this.
 *  WHERE        when all processes are idle, every entry is settled and the sweep has nothing left: exactly one copy
 *               exists, on the row's tier (G2). The row has the count of the newest event, and its tier is the one
 *               that this event asks for (G3). With WIPE the newest event may be lost. Then it is the newest event
 *               whose count was ever written: no older count replaces a newer one.
 *
 * Files. f[t] is the item's name on tier t. tmp[w] is the attempt's temporary; it stays until the emit, as the record
 * of what may have been published. d[w] is the attempt's own folder in released/.
 *
 * Without options this is the protocol as it stands (FENCE=1). Each option removes one rule, or tries another variant.
 * Spin then finds a violation, unless the line says "clean".
 *  FENCE=0          rename to released/, check lock and row again, rename back (clean with G1W and BACKAPPENDS)
 *  FENCE=2          an flock around {row, rename} and around {adopt}, {publish} (clean)
 *  NOBUMP           the release reads the row and does not raise its generation
 *  NOREVOKE         the mover leaves releasers' folders alone; REVOKEFIRST: it clears them before its look-up
 *  NOSTILL          the mover does not check that what it has read still has its name
 *  KEEPLOCK         with NOBUMP: the lock has no expiry between emit and commit
 *  BUSYSETTLES      an event that finds the lock busy is settled; UNLOCKREAPPENDS: every unlock appends it again
 *  ANYORDER         a worker takes an event though the state names a newer one (clean: the row's count stops it)
 *  NOEMITFENCE      the emit does not check whose lock it is
 *  REAPPENDLOCKED   finish appends the newest event again only if the lock is still this event's (clean: as above)
 *  NOSUPREAPPEND    finish does not append a superseded newest event again
 *  NOSUPCLEAR       finish does not have a superseded move's copy cleared
 *  NORECORD         the temporary goes before the emit, and the sweep only unlinks
 *  SHAREDTMP        one temporary for an event, not for an attempt
 *  RESEND           event 1 is posted again after event 2 (with T3 = T1); RESENDIGNORED (clean): the repeat is ignored
 *  NOCOUNTFENCE     with EXPIRE or WIPE, NE=3, T1=0, T2=1, T3=0: the commit does not check whether the row has a newer count
 *  COUNTANYORDER    with LOCKED, NE=3, all targets 0: a settle in place does not check whether the row has a newer count
 *  EMITEXPIRES      with EXPIRE: the state expires after the emit, before the commit
 *  APPENDEXPIRES    with EXPIRE: the state of an event that seems to need no move expires before it is settled
 *  FINISHEXPIRES    with EXPIRE, T2=1: finish gives another event's state an expiry
 *  NORESET          with SETBACK: an entry id that `views` has not reached counts as newer
 *  NOFIRST          with SETBACK, EXPIRE: the first count of a row does not raise its generation
 *  NOPENDING        with SETBACK, EXPIRE: a worker does not check that an entry without a state is pending
 *  NOMINE           with SETBACK, T1=0, T2=0: a count is written without a check that the lock is still the worker's
 *  LOCKED           every event goes the way with the lock (clean)
 *  BATCHFIRST       with SETBACK: the way without the lock looks at the state before the row
 *  BATCHANYORDER    with NE=3, all targets 0: that way does not check whether the row has a newer count
 *  BATCHANYROW      with EXPIRE: that way does not check that the row is as it was looked up
 *  BATCHACKS        that way acks an event before its count is written
 *  BATCHEXPIRES     with EXPIRE, T1=0: that way gives the state of a newer event an expiry
 *  BACKAPPENDS      with FENCE=0: a releaser that renames back asks for the clearing again
 *  SWEEPLIVE        the sweep also takes what is in use (clean)
 *  LOSTONLY         only "some whole copy exists" is checked
 *  REACH            is violated when a good end after all events have been committed is reachable: it must be
 */

#ifndef T1
#define T1 1            /* targets of events 1, 2, 3; tiers are 0 (A), 1 (B), 2 (C); the item starts on 0 */
#endif
#ifndef T2
#define T2 0
#endif
#ifndef T3
#define T3 2
#endif
#ifndef NE
#define NE 2            /* view events */
#endif
#ifndef NC
#define NC 1            /* committers */
#endif
#ifndef FENCE
#define FENCE 1         /* 0 rename, check again, rename back; 1 a folder for each attempt; 2 flock */
#endif
#ifndef FAULTS
#define FAULTS 255      /* how many faults; 255: any number */
#endif
#define NW 2            /* relocator workers */
#define NR 2            /* entries that the model's `relocated` can hold at once */

#define TGT(e) ((e)==1 -> T1 : ((e)==2 -> T2 : T3))
#define EV(e)  (NW+(e))          /* lock value after the emit: event e waits for its commit */
#define DEAD   9                 /* lock value: the holder is gone */

/* ---- MySQL ---- */
byte lev;                        /* contents.content_level */
bit  hist[4];                    /* update_history has event e */
byte cnt;                        /* contents.count_entry: the event whose count the row has, 0 none */
byte top;                        /* only for the check: the newest event whose count was ever written */
bit  gok[NW];                    /* the generation that worker w has read is still the row's */

/* ---- Redis ---- */
byte posted;                     /* events accepted */
byte state;                      /* content:{cid}: the newest event, 0 none */
byte lock;                       /* 0 free, w+1 worker w, EV(e) */
bit  vp[4];                      /* `views`: an entry of event e is not settled */
bit  cp[3];                      /* `committed`: an entry that clears tier t is not settled */
byte re[NR]; byte rfrom[NR]; bit rok[NR];   /* `relocated`: event (0: free), from, generation is the row's */

/* ---- files ---- */
byte f[3];                       /* the name in the tier's root: 0 absent, 1 partial, 2 complete */
byte tmp[NW];  byte tmpt[NW];    /* the attempt's temporary and its tier */
bit  strayT[3];                  /* temporaries left by a dead worker */
byte d[NW];    byte dt[NW];      /* released/<attempt>: 0 absent, 1 empty, 2 holds the copy; its tier */
byte strayD[3];                  /* the same, left by a dead worker */
byte src[NW];                    /* tier+1 of the source that w has open; 0 once the source has lost its name */

/* ---- entries in hand: an ack settles the entry that was read, never a later one ---- */
byte hv[NW]; byte hc[NW];        /* event, tier+1 in hand */
bit  own[NW];                    /* the entry in hand is the pending one */
byte hr[NC]; bit rown[NC]; bit cok[NC];      /* committer: slot+1 in hand, still pending, generation still the row's */
byte faults;
byte msw[3];                     /* left in released/, checked, about to be deleted (FENCE 0, 2) */
#ifdef WIPE
bit wiped; bit dirty;
#endif
#ifdef SETBACK
byte old=255;                    /* how many events were posted before the wipe */
#define BEFORE(x) ((x)<=old)
#define NEWER(a,b) ((a)!=0 && (BEFORE(a)==BEFORE(b) -> (a)>(b) : BEFORE(a)))	/* by their entry ids */
#define REACHED(x) (!wiped || !BEFORE(x))	/* `views` has reached the entry id of x */
#else
#define NEWER(a,b) ((a)>(b))
#endif
#ifdef EXPIRE
bit sx;                          /* the state has an expiry */
#define EXPIRES(x) sx=x
#else
#define EXPIRES(x) skip
#endif
#ifdef SHAREDTMP
byte ts[3]; bit tl[3]; bit mine[NW];
#endif
#ifdef RESEND
bit resent;
#endif
#if FENCE==2
byte fl[3];                      /* flock: 0 or w+1 */
#define UNFL(x) if :: fl[x]==w+1 -> fl[x]=0 :: else fi
#define FLFREE(x) (fl[x]==0)
#else
#define UNFL(x) skip
#define FLFREE(x) true
#endif

#ifdef LOSTONLY
#define FOUND true
#elif defined(G1W)
#define FOUND (f[lev]==2 || (d[0]==2 && dt[0]==lev) || (d[1]==2 && dt[1]==lev) || strayD[lev]==2)
#else
#define FOUND (f[lev]==2)
#endif
#define COPIES (f[0]==2 || f[1]==2 || f[2]==2 || d[0]==2 || d[1]==2 || strayD[0]==2 || strayD[1]==2 || strayD[2]==2)
inline check() { assert(COPIES); assert(FOUND) }

inline addV(e_) {
	vp[e_]=1;
	if :: hv[0]==e_ -> own[0]=0 :: else fi;
	if :: hv[1]==e_ -> own[1]=0 :: else fi
}
inline addC(t_) {
	cp[t_]=1;
	if :: hc[0]==t_+1 -> own[0]=0 :: else fi;
	if :: hc[1]==t_+1 -> own[1]=0 :: else fi
}
#define SAMER(i,e_,l_,o_) (re[i]==(e_) && rfrom[i]==(l_) && rok[i]==(o_))
#if NC>1
inline disown(i) { if :: hr[0]==i+1 -> rown[0]=0 :: else fi; if :: hr[1]==i+1 -> rown[1]=0 :: else fi }
#define CSTALE cok[0]=0; cok[1]=0
#define CIDLE (!hr[0] && !hr[1])
#else
inline disown(i) { if :: hr[0]==i+1 -> rown[0]=0 :: else fi }
#define CSTALE cok[0]=0
#define CIDLE (!hr[0])
#endif
inline putR(i,e_,l_,o_) { re[i]=e_; rfrom[i]=l_; rok[i]=o_; disown(i) }
inline addR(e_,l_,o_) {
	if
	:: SAMER(0,e_,l_,o_) -> disown(0)
	:: SAMER(1,e_,l_,o_) -> disown(1)
	:: else -> if :: re[0]==0 -> putR(0,e_,l_,o_) :: else -> putR(1,e_,l_,o_) fi
	fi
}
#define ROOM (re[0]==0 || re[1]==0)

/* the generation rises: every copy of the old one is stale */
inline newGen() { gok[0]=0; gok[1]=0; rok[0]=0; rok[1]=0; CSTALE }

inline revoke(t_) {	/* remove every attempt's folder in released/ with all in it */
	if :: d[0] && dt[0]==t_ -> d[0]=0; dt[0]=0 :: else fi;
	if :: d[1] && dt[1]==t_ -> d[1]=0; dt[1]=0 :: else fi;
	strayD[t_]=0;
	check()
}
inline shut(t_) {	/* the name is gone: a reader of the source may read only a part */
	if :: src[0]==t_+1 -> src[0]=0 :: else fi;
	if :: src[1]==t_+1 -> src[1]=0 :: else fi
}
#ifdef UNLOCKREAPPENDS
#define AGAIN if :: state!=0 && TGT(state)!=lev -> addV(state); EXPIRES(0) :: else fi
#else
#define AGAIN skip
#endif
inline unlock() { if :: lock==w+1 -> lock=0; AGAIN :: else fi }
inline ackV() { if :: own[w] -> vp[e]=0 :: else fi }
inline ackC() { if :: own[w] -> cp[t]=0 :: else fi }
inline clr() { if :: lock==w+1 -> lock=DEAD :: else fi; src[w]=0; e=0; t=0; L=0; gok[w]=0; hv[w]=0; hc[w]=0; own[w]=0 }

#ifdef NOPENDING
#define KNOWN true
#else
#define KNOWN (state!=0 || (own[w] && vp[e]))	/* if there is no state, the entry must be pending */
#endif
#ifdef NOFIRST
#define FIRST skip
#else
#define FIRST if :: cnt==0 -> newGen() :: else fi
#endif
#ifdef EMITEXPIRES
#define EMITTED if :: state==e -> EXPIRES(1) :: else fi
#else
#define EMITTED skip
#endif
#define WRITTEN(x) cnt=x; if :: top<x -> top=x :: else fi

#define FAULT faults<FAULTS
#define FAULTED if :: FAULTS<255 -> faults++ :: else fi
#define CRASH :: FAULT -> goto crash

proctype Worker(byte w) {
	byte e, t, L;
	/* Only a fault delivers an entry that another worker holds. Idle workers are alike: the first one takes. */
#define MAY (w==0 || hv[0] || hc[0])
#define HELDV(x) (hv[1-w]==x && own[1-w])
#define HELDC(x) (hc[1-w]==x+1 && own[1-w])
#ifdef LOCKED
#define m_begin m_lock
#elif defined(BATCHFIRST)
#define m_begin l_state
#else
#define m_begin l_look
#endif
#define TAKEV(x) :: d_step { MAY && vp[x] && (!HELDV(x) || FAULT) -> if :: HELDV(x) -> FAULTED :: else fi; \
		e=x; t=TGT(x); hv[w]=x; own[w]=1 }; goto m_begin
#define TAKEC(x) :: d_step { MAY && cp[x] && (!HELDC(x) || FAULT) -> if :: HELDC(x) -> FAULTED :: else fi; \
		t=x; hc[w]=x+1; own[w]=1 }; goto x_lock
take:	if
	TAKEV(1)
	TAKEV(2)
#if NE>2 || defined(RESEND)
	TAKEV(3)
#endif
	TAKEC(0)
	TAKEC(1)
	TAKEC(2)
	fi;

/* ------------------------------------- the mover, without the lock ------------------------------------- */
/* A batch of events: a settle in place does without the lock, and every other event goes on with it (m_lock). */
#ifndef LOCKED
#ifdef BATCHFIRST
l_state:if		/* one MGET */
	:: lock==0 && state!=0 && state>=e -> goto l_look
	:: goto m_lock
	CRASH
	fi;
#endif
l_look:	if		/* one SELECT */
	:: d_step { !NEWER(cnt,e) && lev==t -> gok[w]=1 }
	:: NEWER(cnt,e) || lev!=t -> goto m_lock
	:: true								/* not looked up: an older event of the same batch */
	CRASH
	fi;
#ifndef BATCHFIRST
l_state:if		/* one MGET, after the look-up: the state has been there since, so Redis was not wiped before it */
	:: lock==0 && state!=0 && !NEWER(e,state)			/* the newest event, or a newer one has come just now */
	:: state!=0 && NEWER(state,e) -> goto l_old			/* a newer event has its own entry */
	:: lock!=0 || state==0 || NEWER(e,state) -> d_step { gok[w]=0 }; goto m_lock
	CRASH
	fi;
#endif
#ifdef BATCHACKS
	if :: d_step { ackV() } CRASH fi;
#endif
l_count:if		/* one UPDATE of many rows */
#ifdef BATCHANYORDER
	:: d_step { gok[w] -> FIRST; WRITTEN(e); gok[w]=0 }
#elif defined(BATCHANYROW)
	:: d_step { !NEWER(cnt,e) -> FIRST; WRITTEN(e); gok[w]=0 }
	:: NEWER(cnt,e) -> goto m_lock
#else
	:: d_step { gok[w] && !NEWER(cnt,e) -> FIRST; WRITTEN(e); gok[w]=0 }
	:: !gok[w] || NEWER(cnt,e) -> d_step { gok[w]=0 }; goto m_lock
#endif
	CRASH
	fi;
l_done:	if		/* one script for many events */
#ifdef BATCHEXPIRES
	:: d_step { EXPIRES(1); ackV(); clr() }; goto take
#else
	:: d_step { if :: state==e -> EXPIRES(1) :: else fi; ackV(); clr() }; goto take
#endif
	CRASH
	fi;
l_old:	if		/* the same script: superseded */
	:: d_step { ackV(); clr() }; goto take
	CRASH
	fi;
#endif

/* ------------------------------------------------ mover ------------------------------------------------ */
m_lock:	if		/* one script */
#ifndef ANYORDER
	:: d_step { state>e -> ackV(); clr() }; goto take		/* a newer event has its own entry */
	:: d_step { !KNOWN -> clr() }; goto take				/* Redis was wiped after the read */
	:: d_step { state<=e && lock==0 && KNOWN -> lock=w+1 }
#else
	:: d_step { lock==0 -> lock=w+1 }
#endif
#ifdef BUSYSETTLES
	:: d_step { lock!=0 -> ackV(); clr() }; goto take
#else
	:: d_step { lock!=0 -> clr() }; goto take			/* busy: the entry stays pending */
#endif
	CRASH
	fi;
#ifdef REVOKEFIRST
	if :: d_step { revoke(t) } CRASH fi;
#endif
m_look:	if		/* one SELECT */
	:: d_step { !NEWER(cnt,e) && lev!=t -> L=lev; gok[w]=1 }
	:: d_step { !NEWER(cnt,e) && lev==t -> gok[w]=1 }; goto m_mine
#ifdef SETBACK
	:: d_step { NEWER(cnt,e) -> L=cnt; gok[w]=1 }; goto m_ask
#else
	:: NEWER(cnt,e) -> goto m_old					/* the row has a newer count */
#endif
	CRASH
	fi;
#if FENCE==1 && !defined(NOREVOKE) && !defined(REVOKEFIRST)
m_rev:	if :: d_step { revoke(t) } CRASH fi;
#endif
m_have:	if
	:: f[t]!=0 && FLFREE(t) -> goto m_emit			/* the name is taken by the same bytes: adopt */
	:: f[t]==0 && FLFREE(t)
	CRASH
	fi;
#ifdef SHAREDTMP
	if :: d_step { tmp[w]=1; tmpt[w]=t; ts[t]=1; tl[t]=0; mine[0]=0; mine[1]=0; mine[w]=1 } CRASH fi;
	if
	:: d_step { f[L]==2 -> if :: mine[w] -> ts[t]=2; if :: tl[t] -> f[t]=2 :: else fi :: else fi }
	:: f[L]!=2 -> goto m_drop
	CRASH
	fi;
	if
	:: f[t]!=0
	:: f[t]==0 && ts[t]==0 -> goto m_drop
	:: d_step { f[t]==0 && ts[t]!=0 -> f[t]=ts[t]; tl[t]=1 }
	CRASH
	fi;
#else
m_open:	if		/* open the source */
	:: d_step { f[L]==2 -> src[w]=L+1 }
	:: f[L]!=2 -> goto m_drop					/* the source is gone: again later */
	CRASH
	fi;
m_copy:	if		/* create the temporary file or tree, fill it, sync it, read it back */
	:: d_step { tmp[w]=2; tmpt[w]=t }
	:: d_step { src[w]==0 -> tmp[w]=1; tmpt[w]=t }			/* a releaser was deleting the source */
	CRASH
	fi;
m_still:if		/* the source still has its name, so the copy is whole */
#ifdef NOSTILL
	:: d_step { src[w]=0 }
#else
	:: d_step { src[w]!=0 -> src[w]=0 }
	:: src[w]==0 -> goto m_drop
#endif
	CRASH
	fi;
m_link:	if		/* link(temporary name, name) */
	:: tmp[w]==0 -> goto m_drop					/* swept: ENOENT */
	:: d_step { tmp[w]!=0 && f[t]==0 && FLFREE(t) -> f[t]=tmp[w]; assert(f[t]==2) }	/* only a whole copy is published */
	:: tmp[w]!=0 && f[t]!=0 && FLFREE(t)				/* EEXIST, same bytes: adopt */
	CRASH
	fi;
#endif
#ifdef NORECORD
	if :: d_step { tmp[w]=0; tmpt[w]=0 } CRASH fi;
#endif
m_emit:	if		/* one script */
#ifdef NOEMITFENCE
	:: d_step { ROOM -> addR(e,L,gok[w]); if :: lock==w+1 -> lock=EV(e) :: else fi; EMITTED; ackV() }
#else
	:: d_step { lock==w+1 && ROOM -> addR(e,L,gok[w]); lock=EV(e); EMITTED; ackV() }
	:: d_step { lock==w+1 && ROOM && FAULT -> addR(e,L,gok[w]); lock=EV(e); EMITTED; ackV(); FAULTED }; goto m_emit	/* the reply is lost: again */
	:: lock==EV(e)							/* emitted before */
	:: lock!=w+1 && lock!=EV(e) -> goto m_clear
#endif
	CRASH
	fi;
m_drop:	if :: d_step { tmp[w]=0; tmpt[w]=0; unlock(); clr() }; goto take CRASH fi;
m_clear:if		/* the lock is lost: the releaser clears what was published; the entry stays pending */
#ifdef NORECORD
	:: d_step { addC(t) }
#else
	:: d_step { if :: tmp[w] -> addC(t) :: else fi }
#endif
	CRASH
	fi;
	goto m_drop;
m_mine:
#ifdef SETBACK
	if		/* one GET: the lock is still mine, so Redis was not wiped before the look-up */
	:: lock==w+1
#ifndef NOMINE
	:: lock!=w+1 -> goto m_drop
#else
	:: lock!=w+1
#endif
	CRASH
	fi;
#endif
m_count:if		/* one transaction: the count goes into the row */
#ifdef COUNTANYORDER
	:: d_step { gok[w] -> FIRST; WRITTEN(e); gok[w]=0 }
#else
	:: d_step { gok[w] && !NEWER(cnt,e) -> FIRST; WRITTEN(e); gok[w]=0 }
	:: gok[w] && NEWER(cnt,e) -> goto m_old
#endif
	:: !gok[w] -> goto m_drop					/* the row has changed: again later */
	CRASH
	fi;
m_done:	if		/* one script: settled in place */
	:: d_step { if :: state==e -> EXPIRES(1) :: else fi; unlock(); ackV(); clr() }; goto take
	CRASH
	fi;
m_old:	if		/* one script: superseded */
	:: d_step { unlock(); ackV(); clr() }; goto take
	CRASH
	fi;
#ifdef SETBACK
m_ask:	if		/* XINFO STREAM: has `views` reached the row's entry id? */
#ifndef NORESET
	:: REACHED(L) -> goto m_old
	:: !REACHED(L) && REACHED(e)
	:: !REACHED(L) && !REACHED(e) -> goto m_drop			/* nor mine: this entry is gone */
#else
	:: goto m_old
#endif
	CRASH
	fi;
	if		/* one UPDATE: the id belongs to a Redis that was wiped */
	:: d_step { if :: gok[w] && cnt==L -> cnt=0 :: else fi; gok[w]=0; L=0 }; goto m_look
	CRASH
	fi;
#endif

/* ----------------------------------------------- releaser ---------------------------------------------- */
x_lock:	if
	:: d_step { lock==0 -> lock=w+1 }
	:: d_step { lock!=0 -> clr() }; goto take
	CRASH
	fi;
#if FENCE==1
x_dir:	if :: d_step { d[w]=1; dt[w]=t } CRASH fi;			/* mkdir released/<attempt> */
#endif
#if FENCE==2
x_flock:if :: d_step { fl[t]==0 -> fl[t]=w+1 } CRASH fi;
#endif
x_row:	if		/* UPDATE contents SET generation = generation + 1 WHERE cid = ? AND content_level <> t */
	:: lev==t -> goto x_end
#ifdef NOBUMP
	:: lev!=t
#else
	:: d_step { lev!=t -> newGen() }
#endif
	CRASH
	fi;
x_ren:	if		/* rename the old copy into released/ */
#if FENCE==1
	:: d_step { d[w]==0 -> unlock(); clr() }; goto take		/* the folder was removed: again later */
	:: d[w]!=0 && f[t]==0 -> goto x_end
	:: d_step { d[w]!=0 && f[t]!=0 -> d[w]=f[t]; f[t]=0; shut(t); check() }
#else
	:: f[t]==0 -> goto x_end
	:: d_step { f[t]!=0 -> d[w]=f[t]; dt[w]=t; f[t]=0; shut(t); check() }
#endif
	CRASH
	fi;
#if FENCE==2
	if :: d_step { UNFL(t) } CRASH fi;
#endif
#if FENCE==0
x_chk:	if :: lock==w+1 :: lock!=w+1 -> goto x_back CRASH fi;
	if
	:: lev==t -> goto x_back
#ifdef NOBUMP
	:: lev!=t
#else
	:: d_step { lev!=t -> newGen() }
#endif
	CRASH
	fi;
#endif
x_del:	if :: d_step { d[w]=0; dt[w]=0; check() } CRASH fi;
x_end:	if		/* remove the empty folder; one script: unlock, ack */
	:: d_step { d[w]=0; dt[w]=0; UNFL(t); unlock(); ackC(); clr() }; goto take
	CRASH
	fi;
#if FENCE==0
x_back:	if		/* link back, never over a name; remove the released name; the entry stays pending */
	:: d_step { if :: f[t]==0 -> f[t]=d[w] :: else fi; d[w]=0; dt[w]=0; unlock();
#ifdef BACKAPPENDS
		addC(t);
#endif
		clr() }; goto take
	CRASH
	fi;
#endif

crash:	if :: d_step {
		FAULTED;
		if :: tmp[w] -> strayT[tmpt[w]]=1; tmp[w]=0; tmpt[w]=0 :: else fi;
		if :: d[w]>strayD[dt[w]] -> strayD[dt[w]]=d[w]; msw[dt[w]]=0 :: else fi;
		d[w]=0; dt[w]=0;
#if FENCE==2
		UNFL(0); UNFL(1); UNFL(2);
#endif
#ifdef SHAREDTMP
		mine[w]=0;
#endif
		clr()
	} fi;
	goto take
}

proctype Committer(byte c) {
	bit sup; byte e, from;
#if NC>1
#define CMAY (c==0 || hr[0])
#define HELDR(i) (hr[1-c]==i+1 && rown[1-c])
#else
#define CMAY true
#define HELDR(i) false
#endif
#define TAKER(i) :: d_step { CMAY && re[i] && (!HELDR(i) || FAULT) -> if :: HELDR(i) -> FAULTED :: else fi; \
		e=re[i]; from=rfrom[i]; cok[c]=rok[i]; hr[c]=i+1; rown[c]=1 }
take:	if
	TAKER(0)
	TAKER(1)
	fi;
commit:	if		/* one transaction */
	:: d_step { hist[e] -> sup=0; cok[c]=0 }			/* committed before */
#ifdef NOCOUNTFENCE
#define FITS cok[c]
#else
#define FITS (cok[c] && !NEWER(cnt,e))
#endif
	:: d_step { !hist[e] && FITS -> newGen(); lev=TGT(e); hist[e]=1; sup=0; WRITTEN(e); check() }
	:: d_step { !hist[e] && !FITS -> sup=1; cok[c]=0 }		/* superseded */
	CRASH
	fi;
finish:	if		/* one script */
	:: d_step {
		if
		:: !sup ->
#ifdef REAPPENDLOCKED
			if :: lock==EV(e) && state!=0 && TGT(state)!=TGT(e) -> addV(state); EXPIRES(0)
#else
			if :: state!=0 && TGT(state)!=TGT(e) -> addV(state); EXPIRES(0)
#endif
#ifdef FINISHEXPIRES
			:: else -> EXPIRES(1)
#else
			:: state==e -> EXPIRES(1)
			:: else
#endif
			fi;
			addC(from)
		:: sup ->
#ifndef NOSUPREAPPEND
			if :: state==e -> addV(e); EXPIRES(0) :: else fi;
#endif
#ifndef NOSUPCLEAR
			addC(TGT(e))
#endif
		fi;
		if :: lock==EV(e) -> lock=0 :: else fi;
		if :: rown[c] -> re[hr[c]-1]=0; rfrom[hr[c]-1]=0; rok[hr[c]-1]=0 :: else fi
		};
		if
		:: d_step { sup=0; e=0; from=0; hr[c]=0; rown[c]=0; cok[c]=0 }; goto take
		:: FAULT -> d_step { FAULTED }; goto finish		/* the reply is lost: again */
		fi
	CRASH
	fi;
crash:	if :: d_step { FAULTED; sup=0; e=0; from=0; hr[c]=0; rown[c]=0; cok[c]=0 } fi;
	goto take
}

#ifdef KEEPLOCK
#define KEPT lock<=NW
#else
#define KEPT true
#endif
#define IDLE (!vp[1]&&!vp[2]&&!vp[3]&&!cp[0]&&!cp[1]&&!cp[2]&&!re[0]&&!re[1]&&!hv[0]&&!hv[1]&&!hc[0]&&!hc[1]&&CIDLE)
#define NOSTRAY (!strayT[0]&&!strayT[1]&&!strayT[2]&&!strayD[0]&&!strayD[1]&&!strayD[2])
#define LEFT(x) d_step { strayT[x] -> addC(x); strayT[x]=0 } :: d_step { strayT[x] && !cp[x] && FAULT -> addC(x); FAULTED }

#ifdef APPENDEXPIRES
#define APPENDED EXPIRES(TGT(posted)==lev)
#else
#define APPENDED EXPIRES(0)
#endif

#define NEWEST (state==0 -> cnt : state)

proctype Env() {
	do
	:: d_step { posted<NE -> posted++; state=posted; addV(posted); APPENDED }	/* api: one script */
#ifdef RESEND
	:: d_step { posted==2 && !resent -> resent=1;
#ifndef RESENDIGNORED
		addV(3); state=3						/* a repeat has its own entry id */
#endif
	}
#endif
	:: d_step { lock!=0 && lock!=DEAD && FAULT && KEPT -> lock=0; FAULTED }		/* the lock of a paused worker expires */
	:: d_step { lock==DEAD -> lock=0 }
#ifdef EXPIRE
	:: d_step { state!=0 && sx -> state=0; sx=0 }				/* TIERFLOW_STATE_TTL */
#endif
	/* the sweep of .tierflow/: every relocator runs it, at any time */
#ifdef NORECORD
	:: d_step { strayT[0] -> strayT[0]=0 }
	:: d_step { strayT[1] -> strayT[1]=0 }
	:: d_step { strayT[2] -> strayT[2]=0 }
#else
	:: LEFT(0)
	:: LEFT(1)
	:: LEFT(2)
#endif
#ifdef SWEEPLIVE
	:: d_step { tmp[0] -> addC(tmpt[0]); tmp[0]=0; tmpt[0]=0 }
	:: d_step { tmp[1] -> addC(tmpt[1]); tmp[1]=0; tmpt[1]=0 }
	:: d_step { d[0] -> d[0]=0; dt[0]=0; check() }
	:: d_step { d[1] -> d[1]=0; dt[1]=0; check() }
#endif
#define SWD(x) d_step { strayD[x] -> strayD[x]=0; check() }
#ifdef NOBUMP
#define BUMP skip
#else
#define BUMP newGen()
#endif
#ifdef BACKAPPENDS
#define SWAPP(x) addC(x)
#else
#define SWAPP(x) skip
#endif
#define SWR(x) d_step { strayD[x] && lev==x -> if :: f[x]==0 -> f[x]=strayD[x] :: else fi; strayD[x]=0; msw[x]=0; SWAPP(x) } \
	:: d_step { strayD[x] && lev!=x && !msw[x] -> BUMP; msw[x]=1 } \
	:: d_step { strayD[x] && msw[x] -> strayD[x]=0; msw[x]=0; check() }
#if FENCE==1
	:: SWD(0)
	:: SWD(1)
	:: SWD(2)
#else
	:: SWR(0)
	:: SWR(1)
	:: SWR(2)
#endif
#ifdef SETBACK
#define WIPED old=posted;
#else
#define WIPED
#endif
#ifdef WIPE
	:: d_step { !wiped -> wiped=1; dirty=1; state=0; EXPIRES(0); WIPED lock=0; vp[1]=0; vp[2]=0; vp[3]=0; cp[0]=0; cp[1]=0; cp[2]=0;
		re[0]=0; re[1]=0; rfrom[0]=0; rfrom[1]=0; rok[0]=0; rok[1]=0; own[0]=0; own[1]=0; rown[0]=0; 
#if NC>1
		rown[1]=0
#endif
	}
	:: d_step { IDLE && dirty -> dirty=0;					/* verify --repair */
		if :: lev!=0 && f[0] -> addC(0) :: else fi;
		if :: lev!=1 && f[1] -> addC(1) :: else fi;
		if :: lev!=2 && f[2] -> addC(2) :: else fi;
		if :: state!=0 && TGT(state)!=lev -> addV(state); EXPIRES(0) :: else fi }
#define REPAIRED !dirty
#else
#define REPAIRED true
#endif
#ifdef REACH
	:: d_step { posted==NE && IDLE && NOSTRAY && hist[1] && hist[NE] -> assert(false) }
#endif
#ifndef LOSTONLY
#ifdef WIPE
#define WHERE ((top==0 || (cnt==top && lev==TGT(top))) && (state==0 || lev==TGT(state)))
#else
#ifdef RESEND
#define WHERE (lev==TGT(NE))
#else
#define WHERE (cnt==NE && lev==TGT(NE))
	:: d_step { posted && NEWEST!=posted -> assert(NEWEST==posted) }	/* NEWEST */
#endif
#endif
	:: d_step { posted==NE && IDLE && NOSTRAY && REPAIRED && !(f[lev]==2 && (f[0]!=0)+(f[1]!=0)+(f[2]!=0)==1 && WHERE) ->
		assert(f[lev]==2);
		assert((f[0]!=0)+(f[1]!=0)+(f[2]!=0)==1);			/* G2: one copy */
		assert(WHERE) }							/* G2, G3 */
#endif
	od
}

init {
	d_step { f[0]=2 };
	atomic {
		run Worker(0); run Worker(1); run Committer(0);
#if NC>1
		run Committer(1);
#endif
		run Env()
	}
}
