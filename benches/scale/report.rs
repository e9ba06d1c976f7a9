//! Owns the results: the tables that are printed, and the picture of the memory in `target/bench/scale.svg`.
//! Never measures.

use std::{fmt::Write as _, fs, path::Path};

use crate::{
    finished::Finished,
    followed::Followed,
    hostile_answers::HostileAnswers,
    reads::{Measured, Reads},
    waiting::{Idle, Tenants, Waiting},
};

/// The bound of the memory without stops in MiB, and for each waiting stop in KiB.
const BOUND_MIB: f64 = 12.0;
const BOUND_KIB_PER_STOP: f64 = 1.0;

/// The largest ratio of the peak while listing to the memory a minute later.
const PEAK_RATIO: f64 = 1.2;

/// The status writes of stops that were not sent that are allowed in the first minute.
const MOST_WRITES: u64 = 1000;

/// The longest time to the first stop request in seconds, and its largest ratio to the list of a bare client.
const FIRST_STOP: f64 = 5.0;
const FIRST_STOP_RATIO: f64 = 1.2;

/// The largest peak of the memory while a hundred answers arrive at once, in MiB.
const MOST_FOR_ANSWERS: f64 = 64.0;

/// The most CPU time of a read, in ms: a thousand runs at one read a minute each take 0.5 % of a core.
const MOST_FOR_A_READ: f64 = 0.3;

/// The same with very many runs: one core can read 100 tenants at their full rate.
const MOST_FOR_A_DUE_READ: f64 = 1.0;

/// All results.
#[derive(Default)]
pub struct Report {
    idle: Option<Idle>,
    waiting: Vec<(Tenants, Waiting)>,
    finished: Option<Finished>,
    followed: Option<Followed>,
    reads: Option<Reads>,
    answers: Vec<HostileAnswers>,
}

/// Returns the bound of the memory with this number of waiting stops, in MiB.
fn bound(stops: usize) -> f64 {
    BOUND_MIB + stops as f64 * BOUND_KIB_PER_STOP / 1024.0
}

fn mark(kept: bool) -> &'static str {
    if kept { "" } else { " ✗" }
}

impl Report {
    pub fn idle(&mut self, idle: Idle) {
        self.idle = Some(idle);
    }

    pub fn waiting(&mut self, tenants: Tenants, waiting: Waiting) {
        self.waiting.push((tenants, waiting));
    }

    pub fn finished(&mut self, finished: Finished) {
        self.finished = Some(finished);
    }

    pub fn followed(&mut self, followed: Followed) {
        self.followed = Some(followed);
    }

    pub fn reads(&mut self, reads: Reads) {
        self.reads = Some(reads);
    }

    pub fn answers(&mut self, answers: Vec<HostileAnswers>) {
        self.answers = answers;
    }

    /// Prints the tables, and writes the picture.
    pub fn print(&self) {
        if let Some(Idle { rss, peak }) = &self.idle {
            println!(
                "\nWithout stops: {rss:.1} MiB, peak {peak:.1} MiB. Memory in MiB, CPU in seconds; ✗ misses a target.\n"
            );
        }
        println!(
            "| waiting stops | tenants | memory | bound | KiB a stop | peak, listing | ratio | peak, all | list | bare list | first stop | CPU: list, minute, quiet |"
        );
        println!("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
        for (tenants, waiting) in &self.waiting {
            self.print_usage(*tenants, waiting);
        }
        println!(
            "\n| waiting stops | tenants | in the queue | sent | status writes | of these not for sent stops | events | events in all (namespaces) | quiet minute: status writes |"
        );
        println!("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
        for (tenants, waiting) in &self.waiting {
            print_requests(*tenants, waiting);
        }
        if let Some(Finished { stops, first_stop, bare_listed, ratio, memory: [rss, peak] }) = &self.finished {
            println!(
                "\n| finished stops | first stop | bare list | ratio | memory | peak |\n| ---: | ---: | ---: | ---: | ---: | ---: |"
            );
            let (first, bare) = (first_stop.as_secs_f64(), bare_listed.as_secs_f64());
            println!(
                "| {stops} | {first:.3} s | {bare:.3} s | {ratio:.2}{} | {rss:.1} | {peak:.1} |",
                mark(*ratio <= FIRST_STOP_RATIO)
            );
        }
        if let Some(Followed { runs: [runs, tasks], at_work: [rss, peak], restarted: [rss_after, peak_after] }) =
            &self.followed
        {
            println!(
                "\n| followed runs | tasks of each | memory | peak | memory, restarted | peak, restarted |\n| ---: | ---: | ---: | ---: | ---: | ---: |"
            );
            println!("| {runs} | {tasks} | {rss:.1} | {peak:.1} | {rss_after:.1} | {peak_after:.1} |");
        }
        if let Some(Reads { followed, due, time_wait }) = &self.reads {
            println!("\n| followed runs, of 100 tenants, over TLS | reads | reads a second | CPU of each, ms | connections |");
            println!("| ---: | ---: | ---: | ---: | ---: |");
            for (phase, most) in [(followed, MOST_FOR_A_READ), (due, MOST_FOR_A_DUE_READ)] {
                let Measured { runs, reads, connections, rate, cpu } = phase;
                println!("| {runs} | {reads} | {rate:.0} | {cpu:.3}{} | {connections} |", mark(*cpu <= most));
            }
            println!("\n{time_wait} sockets are in TIME_WAIT after these reads.");
            let part = followed.cpu * 1000.0 / 60_000.0;
            println!("A thousand runs at one read a minute each take {:.2} % of a core.", part * 100.0);
        }
        if !self.answers.is_empty() {
            println!("\n| 100 answers at once | peak |\n| --- | ---: |");
        }
        for HostileAnswers { kind, peak } in &self.answers {
            println!("| {kind} | {peak:.1}{} |", mark(*peak <= MOST_FOR_ANSWERS));
        }
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("it is in the target folder").join("bench");
        fs::create_dir_all(&folder).unwrap();
        let file = folder.join("scale.svg");
        fs::write(&file, self.picture()).unwrap();
        println!("\nthe memory as a picture: {}", file.display());
    }

    fn print_usage(&self, tenants: Tenants, waiting: &Waiting) {
        let Waiting {
            stops,
            listed,
            bare_listed,
            first_stop,
            rss,
            peaks: [listing, _, all],
            cpu: [list, minute, quiet],
            ..
        } = waiting;
        let (bound, ratio, first_stop) = (bound(*stops), listing / rss, first_stop.as_secs_f64());
        let each = self.idle.as_ref().map_or(0.0, |idle| (rss - idle.rss) * 1024.0 / *stops as f64);
        let cgroup = waiting.cgroup_peak.map_or_else(String::new, |peak| format!(" (cgroup {peak:.1})"));
        println!(
            "| {stops} | {} | {rss:.1}{} | {bound:.1} | {each:.2} | {listing:.1} | {ratio:.2}{} | {all:.1}{cgroup} | {:.2} s | {:.2} s | {first_stop:.2} s{} | {list:.1}, {minute:.1}, {quiet:.1} |",
            tenants.numbers(*stops).0,
            mark(*rss <= bound),
            mark(ratio <= PEAK_RATIO),
            listed.as_secs_f64(),
            bare_listed.as_secs_f64(),
            mark(first_stop <= FIRST_STOP),
        );
    }

    /// Draws the memory over the number of waiting stops, with the bound as a line.
    fn picture(&self) -> String {
        let most_stops = self.waiting.iter().map(|(_, waiting)| waiting.stops).max().unwrap_or(1);
        let idle = self.idle.as_ref().map_or(0.0, |idle| idle.rss);
        let most = self.waiting.iter().map(|(_, waiting)| waiting.peaks[2]).fold(bound(most_stops), f64::max);
        let chart = Chart { most_stops: most_stops as f64, most_mebibytes: most * 1.05 };
        let mut svg = chart.axes();
        let ends = [0, most_stops].map(|stops| chart.at(stops as f64, bound(stops)));
        line(&mut svg, &ends, "#888", "stroke-dasharray=\"6 4\"");
        for (tenants, color) in [(Tenants::One, "#0969da"), (Tenants::Many, "#bf3989")] {
            let of = |(which, waiting): &(Tenants, Waiting)| {
                (*which == tenants).then_some((waiting.stops as f64, waiting.rss))
            };
            let measured: Vec<_> = self.waiting.iter().filter_map(of).collect();
            let points: Vec<_> = [(0.0, idle)].into_iter().chain(measured).map(|(x, y)| chart.at(x, y)).collect();
            if points.len() > 1 {
                line(&mut svg, &points, color, "");
            }
        }
        for (row, (color, text)) in [
            ("#888", "bound: 12 MiB and 1 KiB a stop"),
            ("#0969da", "one tenant in one namespace"),
            ("#bf3989", "1,000 tenants in 50 namespaces"),
        ]
        .into_iter()
        .enumerate()
        {
            let y = TOP + 16.0 + 18.0 * row as f64;
            write!(svg, "<text x=\"{}\" y=\"{y}\" fill=\"{color}\">{text}</text>", LEFT + 12.0).expect(TO_STRING);
        }
        svg + "</svg>\n"
    }
}

/// The size of the picture, and the left and upper end of its axes, in pixels.
const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 56.0;
const TOP: f64 = 16.0;
const RIGHT: f64 = WIDTH - 24.0;
const BOTTOM: f64 = HEIGHT - 48.0;

const TO_STRING: &str = "writing to a string does not fail";

/// The scales of the picture.
struct Chart {
    most_stops: f64,
    most_mebibytes: f64,
}

impl Chart {
    fn at(&self, stops: f64, mebibytes: f64) -> (f64, f64) {
        let x = LEFT + (RIGHT - LEFT) * stops / self.most_stops;
        (x, BOTTOM - (BOTTOM - TOP) * mebibytes / self.most_mebibytes)
    }

    fn axes(&self) -> String {
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#fff\"/>\n\
             <path d=\"M{LEFT} {TOP}V{BOTTOM}H{RIGHT}\" fill=\"none\" stroke=\"#333\"/>\n"
        );
        for part in 0..=4 {
            let (stops, mebibytes) =
                (self.most_stops * f64::from(part) / 4.0, self.most_mebibytes * f64::from(part) / 4.0);
            let (x, y) = self.at(stops, mebibytes);
            writeln!(svg, "<text x=\"{x:.0}\" y=\"{:.0}\" text-anchor=\"middle\">{stops:.0}</text>", BOTTOM + 18.0)
                .expect(TO_STRING);
            writeln!(svg, "<text x=\"{:.0}\" y=\"{y:.0}\" text-anchor=\"end\">{mebibytes:.0}</text>", LEFT - 6.0)
                .expect(TO_STRING);
        }
        let middle = (LEFT + RIGHT) / 2.0;
        writeln!(
            svg,
            "<text x=\"{middle}\" y=\"{}\" text-anchor=\"middle\">waiting stops; resident memory in MiB, one minute after the list</text>",
            HEIGHT - 10.0
        )
        .expect(TO_STRING);
        svg
    }
}

fn line(svg: &mut String, points: &[(f64, f64)], color: &str, style: &str) {
    let path: Vec<_> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    writeln!(
        svg,
        "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"2\" {style}/>",
        path.join(" ")
    )
    .expect(TO_STRING);
}

/// Prints the requests to the API server. A stop that was sent has two status writes: its claim and its outcome.
fn print_requests(
    tenants: Tenants,
    Waiting { stops, sent, queued, requests: [minute, quiet, all], namespaces, .. }: &Waiting,
) {
    let writes = minute.of("workflowrunstops/status PATCH");
    let others = writes.saturating_sub(2 * sent);
    println!(
        "| {stops} | {} | {queued} | {sent} | {writes} | {others}{} | {} | {}{} ({namespaces}) | {} |",
        tenants.numbers(*stops).0,
        mark(others <= MOST_WRITES),
        minute.events(),
        all.events(),
        mark(all.events() <= *namespaces as u64),
        quiet.of("workflowrunstops/status PATCH"),
    );
}
