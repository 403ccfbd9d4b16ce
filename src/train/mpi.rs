//! Ranks as an MPI has them (feature `mpi`).
//!
//! One thread alone speaks to the MPI, and sleeps between its questions: an MPI's own waiting would take a core from drivers that
//! compute on the processor. Every second it tells the other ranks that it lives. A rank that is silent for half a minute, or whose
//! process on this machine is gone, is reported by whatever exchange comes next, because MPI itself would wait for it for ever.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{Builder, JoinHandle, park, sleep};
use std::time::{Duration, Instant};

use mpi::Threading;
use mpi::environment::Universe;
use mpi::request::{LocalScope, Request, scope};
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives, Destination, MatchedReceiveVec, Source};

use super::exchange::{Exchange, ExchangeError};

/// Between two signs of life.
const BEAT: Duration = Duration::from_secs(1);
/// After which a silent rank is gone.
const SILENCE: Duration = Duration::from_secs(30);
/// Between two looks at the processes of this machine.
const LOOK: Duration = Duration::from_millis(200);
/// Between two looks for messages while nothing is exchanged.
const IDLE: Duration = Duration::from_millis(20);
/// While something is: at first not at all, then longer and longer.
const SPINS: u32 = 50;
const SHORTEST: Duration = Duration::from_micros(20);
const LONGEST: Duration = Duration::from_micros(500);
/// For the training to end by itself once a rank is gone.
const GRACE: Duration = Duration::from_secs(10);
/// The bytes of a last word.
const WORD: usize = 1024;

/// What a message is.
const SIZE: i32 = 1;
const DATA: i32 = 2;
const LIFE: i32 = 3;
const FAREWELL: i32 = 4;

/// Where a process is among those of an MPI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its rank, from 0.
    pub rank: usize,
    /// How many ranks there are.
    pub size: usize,
    /// Its rank among those of the same machine.
    pub local: usize,
}

/// The ranks of the MPI that started this process.
#[derive(Debug)]
pub struct Mpi {
    place: Place,
    asks: Sender<Ask>,
    answers: Receiver<Answer>,
    thread: Option<JoinHandle<()>>,
}

type Answer = Result<Vec<Vec<u8>>, ExchangeError>;
type Overdue = Box<dyn FnOnce(ExchangeError) + Send>;
/// A request, with the rank that it receives from.
type Open<'a, 's> = (Option<usize>, Request<'a, [u8], &'s LocalScope<'a>>);

enum Ask {
    Exchange(Vec<Vec<u8>>),
    GiveUp(String),
    Finish,
}

impl Mpi {
    /// Joins the other ranks. Once one is gone, exchanges fail; where the training has not ended ten seconds later, `overdue` is
    /// called, which should end the process.
    ///
    /// # Errors
    /// In words, why there is no MPI.
    pub fn join(overdue: impl FnOnce(ExchangeError) + Send + 'static) -> Result<Mpi, String> {
        let (asks, asked) = channel();
        let (answer, answers) = channel();
        let (place, joined) = channel();
        let run = move || match Talk::begin(asked, answer, Box::new(overdue)) {
            Err(problem) => drop(place.send(Err(problem))),
            Ok((mut talk, universe)) => {
                // The receiver waits below.
                let _ = place.send(Ok(talk.place));
                if let Err(gone) = talk.serve() {
                    talk.fail(gone);
                }
                drop(universe); // which ends MPI
            }
        };
        let thread = Builder::new().name("ranks".into()).spawn(run);
        let thread = thread.map_err(|error| format!("the ranks get no thread: {error}"))?;
        let place = joined.recv().map_err(|_| "MPI ended as it began".to_owned())??;
        Ok(Mpi {
            place,
            asks,
            answers,
            thread: Some(thread),
        })
    }

    /// Where this process is.
    pub fn place(&self) -> Place {
        self.place
    }

    /// Waits for the other ranks and leaves them.
    pub fn finish(mut self) {
        let _ = self.asks.send(Ask::Finish);
        if let Some(thread) = self.thread.take()
            && self.answers.recv().is_ok_and(|answer| answer.is_ok())
        {
            let _ = thread.join();
        }
    }

    /// Tells the other ranks why this one ends, as soon as their exchanges look for it. The process should end then.
    pub fn give_up(self, why: &str) {
        let _ = self.asks.send(Ask::GiveUp(why.to_owned()));
        let _ = self.answers.recv_timeout(2 * BEAT);
    }
}

impl Exchange for Mpi {
    fn rank(&self) -> usize {
        self.place.rank
    }

    fn size(&self) -> usize {
        self.place.size
    }

    fn exchange(&mut self, parts: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, ExchangeError> {
        let ended = |_| ExchangeError {
            rank: self.place.rank,
            what: "can't reach the others any more".into(),
        };
        self.asks.send(Ask::Exchange(parts)).map_err(|_| ended(()))?;
        self.answers.recv().map_err(|_| ended(()))?
    }
}

/// Another rank, as this one knows it.
struct Peer {
    rank: usize,
    heard: Instant,
    /// Its number, where it is a process of this machine.
    process: Option<u32>,
}

/// The thread's side.
struct Talk {
    world: SimpleCommunicator,
    place: Place,
    asked: Receiver<Ask>,
    answer: Sender<Answer>,
    overdue: Option<Overdue>,
    peers: Vec<Peer>,
    told: Instant,
    looked: Instant,
}

impl Talk {
    fn begin(
        asked: Receiver<Ask>,
        answer: Sender<Answer>,
        overdue: Overdue,
    ) -> Result<(Talk, Universe), String> {
        let (universe, _) = mpi::initialize_with_threading(Threading::Funneled)
            .ok_or("MPI has been begun before in this process")?;
        let world = universe.world();
        let near = world.split_shared(world.rank());
        let place = Place {
            rank: world.rank() as usize,
            size: world.size() as usize,
            local: near.rank() as usize,
        };
        let own = [world.rank() as u32, std::process::id()];
        let mut all = vec![0u32; 2 * near.size() as usize];
        near.all_gather_into(&own[..], &mut all[..]);
        let now = Instant::now();
        let peers = (0..place.size).filter(|rank| *rank != place.rank).map(|rank| {
            let near = all.chunks_exact(2).find(|pair| pair[0] as usize == rank);
            // Other containers may have processes of their own numbers.
            let process = near.map(|pair| pair[1]).filter(|process| is_there(*process));
            Peer {
                rank,
                heard: now,
                process,
            }
        });
        let talk = Talk {
            peers: peers.collect(),
            world,
            place,
            asked,
            answer,
            overdue: Some(overdue),
            told: now,
            looked: now,
        };
        Ok((talk, universe))
    }

    /// Answers until the training has finished.
    fn serve(&mut self) -> Result<(), ExchangeError> {
        loop {
            match self.asked.recv_timeout(IDLE) {
                Ok(Ask::Exchange(parts)) => {
                    let received = self.exchange(parts)?;
                    let _ = self.answer.send(Ok(received));
                }
                Ok(Ask::GiveUp(why)) => {
                    self.say_farewell(&why);
                    // They look for it, before their launcher ends them.
                    sleep(2 * LOOK);
                    let _ = self.answer.send(Ok(Vec::new()));
                    // The process ends now. Without it, MPI would wait for the others.
                    sleep(GRACE);
                }
                Ok(Ask::Finish) => {
                    self.exchange(vec![Vec::new(); self.place.size])?;
                    let _ = self.answer.send(Ok(Vec::new()));
                    return Ok(());
                }
                Err(RecvTimeoutError::Timeout) => {}
                // The training ended without a word: so does this rank.
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
            self.look_after()?;
        }
    }

    /// Sizes first, then what has them.
    fn exchange(&mut self, mut parts: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, ExchangeError> {
        let sizes: Vec<Vec<u8>> = parts
            .iter()
            .map(|part| part.len().to_le_bytes().to_vec())
            .collect();
        let mut found = vec![vec![0; size_of::<usize>()]; self.place.size];
        self.swap(&sizes, &mut found, SIZE)?;
        let size = |bytes: Vec<u8>| usize::from_le_bytes(bytes.try_into().expect("as many as were sent"));
        let mut received: Vec<Vec<u8>> = found.into_iter().map(|bytes| vec![0; size(bytes)]).collect();
        self.swap(&parts, &mut received, DATA)?;
        received[self.place.rank] = std::mem::take(&mut parts[self.place.rank]);
        Ok(received)
    }

    /// Sends a part to each other rank, and receives as much as fits from each.
    fn swap(&mut self, parts: &[Vec<u8>], received: &mut [Vec<u8>], tag: i32) -> Result<(), ExchangeError> {
        let own = self.place.rank;
        scope(|scope| {
            let mut open: VecDeque<Open<'_, '_>> = VecDeque::new();
            for (rank, buffer) in received.iter_mut().enumerate().filter(|(rank, _)| *rank != own) {
                let from = self.world.process_at_rank(rank as i32);
                let request = from.immediate_receive_into_with_tag(scope, &mut buffer[..], tag);
                open.push_back((Some(rank), request));
            }
            for (rank, part) in parts.iter().enumerate().filter(|(rank, _)| *rank != own) {
                let to = self.world.process_at_rank(rank as i32);
                open.push_back((None, to.immediate_send_with_tag(scope, &part[..], tag)));
            }
            let mut waited = 0;
            while !open.is_empty() {
                let before = open.len();
                for _ in 0..before {
                    let Some((from, request)) = open.pop_front() else {
                        break;
                    };
                    match request.test() {
                        Ok(_) => {
                            if let Some(peer) = self.peers.iter_mut().find(|peer| Some(peer.rank) == from) {
                                peer.heard = Instant::now();
                            }
                        }
                        Err(request) => open.push_back((from, request)),
                    }
                }
                if let Err(gone) = self.look_after() {
                    // What is under way can't be taken back, and may not lose its memory: this thread ends with the process.
                    self.fail(gone);
                }
                waited = if open.len() < before { 0 } else { waited + 1 };
                match waited {
                    0..SPINS => std::thread::yield_now(),
                    _ => sleep(LONGEST.min(SHORTEST * (waited - SPINS + 1))),
                }
            }
        });
        Ok(())
    }

    /// Tells the others, when it is time, that this rank lives, and finds whether they do.
    fn look_after(&mut self) -> Result<(), ExchangeError> {
        let now = Instant::now();
        if now - self.told >= BEAT {
            self.told = now;
            for peer in &self.peers {
                // As small as that, it is with the MPI when this returns, whatever the other does.
                self.world
                    .process_at_rank(peer.rank as i32)
                    .send_with_tag(&[0u8][..], LIFE);
            }
        }
        if now - self.looked < LOOK {
            return Ok(());
        }
        self.looked = now;
        for peer in &mut self.peers {
            let process = self.world.process_at_rank(peer.rank as i32);
            let gone = |what| ExchangeError {
                rank: peer.rank,
                what,
            };
            if let Some(message) = process.immediate_matched_probe_with_tag(FAREWELL) {
                let (word, _) = message.matched_receive_vec::<u8>();
                return Err(gone(format!("failed: {}", String::from_utf8_lossy(&word))));
            }
            while let Some(message) = process.immediate_matched_probe_with_tag(LIFE) {
                message.matched_receive_vec::<u8>();
                peer.heard = now;
            }
            if let Some(number) = peer.process.filter(|number| !is_there(*number)) {
                return Err(gone(format!("has ended: its process {number} is gone")));
            }
            if now - peer.heard > SILENCE {
                return Err(gone(format!("has been silent for {} s", SILENCE.as_secs())));
            }
        }
        Ok(())
    }

    fn say_farewell(&self, why: &str) {
        let word = &why.as_bytes()[..why.len().min(WORD)];
        for peer in &self.peers {
            self.world
                .process_at_rank(peer.rank as i32)
                .send_with_tag(word, FAREWELL);
        }
    }

    /// Gives every exchange this error, until the process ends.
    fn fail(&mut self, gone: ExchangeError) -> ! {
        let _ = self.answer.send(Err(gone.clone()));
        let until = Instant::now() + GRACE;
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            match self.asked.recv_timeout(left) {
                Ok(_) => drop(self.answer.send(Err(gone.clone()))),
                Err(RecvTimeoutError::Disconnected) => sleep(left),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
        if let Some(overdue) = self.overdue.take() {
            overdue(gone);
        }
        loop {
            park();
        }
    }
}

/// Whether a process of this machine is there.
fn is_there(number: u32) -> bool {
    let process = i32::try_from(number)
        .ok()
        .and_then(rustix::process::Pid::from_raw);
    // What may not be asked is there.
    process.is_some_and(|process| rustix::process::test_kill_process(process) != Err(rustix::io::Errno::SRCH))
}
