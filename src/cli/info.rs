use clap::Args;
use obelisk::gpu::{AdapterSummary, Device, adapters};
use obelisk::model::{self, NETWORKS, Network, PlannedMemory, Summary};

use super::device::DeviceArguments;
use super::print::outln;
use super::{Usage, examples, values};

/// `obelisk info`
#[derive(Debug, Args)]
#[command(after_help = examples!(
    "Which adapters there are, and the networks": "obelisk info",
    "What a network is made of and needs at a size":
        "obelisk info --arch obelisk-hybrid --size 144,144,144 --labels 9"
))]
pub struct Info {
    /// Describe this network: its layers, parameters, arithmetic and memory; needs no adapter
    #[arg(long, value_name = "NAME")]
    arch: Option<String>,
    /// The image's voxels [default: as published, or 144,144,144]
    #[arg(long, value_name = "D,H,W", value_parser = values::grid, requires = "arch")]
    size: Option<[usize; 3]>,
    /// Labels, the background included [default: as published, or 9]
    #[arg(long, value_name = "L", value_parser = values::classes, requires = "arch")]
    labels: Option<usize>,
    /// Also print every dispatch of one inference: its workgroups, arithmetic, bytes, what the plan did with it, and the
    /// moment at which most memory is in use, and by what
    #[arg(long, requires = "arch", conflicts_with = "json")]
    plan: bool,
    /// With --plan, print the dispatches of a training step (batch 1) instead
    #[arg(long, requires = "plan")]
    training: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: DeviceArguments,
}

impl Info {
    pub fn run(&self) -> anyhow::Result<()> {
        if let Some(arch) = &self.arch {
            let network = &model::find(arch).map_err(|e| Usage(e.to_string()))?;
            return self.describe(network);
        }
        let options = self.device.options();
        let found = pollster::block_on(adapters(options.backend.as_deref()))?;
        let device = pollster::block_on(Device::open(&options))?;
        let chosen = device.adapter();
        let why = match &options.adapter {
            Some(wanted) => format!("`--adapter {wanted}` names it"),
            None if found.len() == 1 => "the only one".to_owned(),
            None => format!("the first of the fastest kind, {}", chosen.kind),
        };
        if self.json {
            let networks: Vec<_> = NETWORKS.iter().map(|n| (n.name, n.about)).collect();
            let report = serde_json::json!({
                "adapters": found, "chosen": chosen, "why": why,
                "forms": device.caps().forms, "forms_source": device.forms_source().to_string(),
                "networks": networks.into_iter().collect::<std::collections::BTreeMap<_, _>>(),
            });
            outln!("{}", serde_json::to_string_pretty(&report)?);
            return Ok(());
        }
        outln!("Adapters");
        for (i, adapter) in found.iter().enumerate() {
            print_adapter(i, adapter);
        }
        outln!("\nChosen: {} ({}): {why}", chosen.name, chosen.backend);
        outln!(
            "Forms of the kernels: {} ({})",
            device.caps().forms,
            device.forms_source()
        );
        outln!("\nNetworks (--arch)");
        for network in NETWORKS {
            outln!("  {:20} {}", network.name, network.about);
        }
        Ok(())
    }
}

impl Info {
    fn describe(&self, network: &Network) -> anyhow::Result<()> {
        let (size, labels) = network.usual();
        let (size, labels) = (self.size.unwrap_or(size), self.labels.unwrap_or(labels));
        let summary = Summary::new(network, size, labels)?;
        if self.json {
            outln!("{}", serde_json::to_string_pretty(&summary)?);
            return Ok(());
        }
        print_summary(network, &summary);
        if self.plan {
            outln!("\n{}", Summary::plan(network, size, labels, self.training)?);
        }
        Ok(())
    }
}

fn print_summary(network: &Network, summary: &Summary) {
    let by = |shape: &[usize]| shape.iter().map(usize::to_string).collect::<Vec<_>>().join("×");
    outln!("{}: {}", network.name, network.about);
    outln!("image 1×{}, {} labels\n", by(&summary.size), summary.labels);
    outln!(
        "{:24} {:16} {:>18} {:>12} {:>12}",
        "layer",
        "kind",
        "output",
        "parameters",
        "MFLOP"
    );
    for layer in &summary.layers {
        outln!(
            "{:24} {:16} {:>18} {:>12} {:>12.1}",
            layer.name,
            layer.kind,
            by(&layer.shape[1..]),
            layer.parameters,
            layer.flops as f64 / 1e6
        );
    }
    outln!(
        "{:24} {:16} {:>18} {:>12} {:>12.1}\n",
        "total",
        "",
        "",
        summary.parameters,
        summary.flops as f64 / 1e6
    );
    print_memory("inference", &summary.inference);
    print_memory("training step, batch 1", &summary.training);
}

fn print_memory(what: &str, planned: &Result<PlannedMemory, String>) {
    let mib = |bytes: u64| bytes as f64 / 1048576.0;
    match planned {
        Ok(memory) => outln!(
            "device memory, {what}: {:.1} MiB, of which activations and temporaries {:.1} MiB",
            mib(memory.total),
            mib(memory.slots)
        ),
        Err(reason) => outln!("device memory, {what}: not within WebGPU's default limits: {reason}"),
    }
}

fn print_adapter(number: usize, a: &AdapterSummary) {
    outln!("  {number}: {} ({}, {}; {})", a.name, a.kind, a.backend, a.driver);
    outln!(
        "     bindings up to {} MiB, buffers up to {} MiB, {} storage buffers a stage",
        a.max_binding_mib,
        a.max_buffer_mib,
        a.storage_buffers
    );
    let subgroups = match a.subgroups {
        Some((least, most)) if least == most => format!("subgroups of {least}"),
        Some((least, most)) => format!("subgroups of {least} to {most}"),
        None => "no subgroups".into(),
    };
    let has = |yes, what| format!("{}{what}", if yes { "" } else { "no " });
    outln!(
        "     workgroups of {} invocations with {} KiB, {subgroups}, {}, {}",
        a.invocations,
        a.workgroup_kib,
        has(a.f16, "16-bit floats"),
        has(a.timestamps, "timestamps")
    );
}
