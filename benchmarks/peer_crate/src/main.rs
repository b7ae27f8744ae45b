//! The worker that runs the Rust crate `ruvllm`: a JSON array [command, argument, ...] per line of
//! stdin, {"ok": value} or {"error": text} per line of stdout.  RAYON_NUM_THREADS sets its threads.
//!
//! The crate gives no access to single steps, so a prompt is a generation of no tokens, and n
//! tokens are a generation of n less one of none: both make n forward passes.

use std::io::{BufRead, Write};
use std::time::Instant;

use ruvllm::{CandleBackend, DeviceType, GenerateParams, LlmBackend, ModelConfig};
use serde_json::{json, Value};

type Answer = Result<Value, String>;

/// Seconds for a prompt of so many tokens and so many generated ones.
fn generate(backend: &CandleBackend, prompt: usize, n: usize) -> Result<f64, String> {
    let text = "hello".to_string() + &" hello".repeat(prompt - 1);
    let params = GenerateParams {
        max_tokens: n,
        temperature: 0.0,
        top_p: 1.0,
        top_k: 0,
        repetition_penalty: 1.0,
        ..Default::default()
    };
    let start = Instant::now();
    let out = backend
        .generate_detailed(&text, params, &mut |_| true)
        .map_err(|e| e.to_string())?;
    let seconds = start.elapsed().as_secs_f64();
    if out.prompt_tokens != prompt || out.completion_tokens != n {
        let found = (out.prompt_tokens, out.completion_tokens);
        return Err(format!("tokens: found {found:?}, want {:?}", (prompt, n)));
    }
    Ok(seconds)
}

fn answer(backend: &mut CandleBackend, words: &[Value]) -> Answer {
    let number = |i: usize| words.get(i).and_then(Value::as_u64).unwrap_or(1).max(1) as usize;
    match words.first().and_then(Value::as_str) {
        Some("about") => Ok(json!({"version": "2.5.0", "system": "candle"})),
        Some("open") => {
            let path = words.get(1).and_then(Value::as_str).unwrap_or("");
            let config = ModelConfig {
                device: DeviceType::Cpu,
                ..Default::default()
            };
            backend.load_model(path, config).map_err(|e| e.to_string())?;
            generate(backend, 8, 2).map(Value::from)
        }
        Some("pp") => generate(backend, number(1), 0).map(Value::from),
        Some("tg") => {
            let whole = generate(backend, 8, number(1))?;
            Ok(Value::from(whole - generate(backend, 8, 0)?))
        }
        other => Err(format!("command: found {other:?}, want about, open, pp or tg")),
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut backend = CandleBackend::with_device(DeviceType::Cpu)?;
    for line in std::io::stdin().lock().lines() {
        let words: Vec<Value> = serde_json::from_str(&line?)?;
        let out = match answer(&mut backend, &words) {
            Ok(value) => json!({"ok": value}),
            Err(text) => json!({"error": text}),
        };
        let mut stdout = std::io::stdout().lock();
        writeln!(stdout, "{out}")?;
        stdout.flush()?;
    }
    Ok(())
}
