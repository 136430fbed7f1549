"""One backbone for all sides of benchmarks/peers/compare.py, and the work of each case."""

LAYERS, WIDTH, HEADS, HIDDEN = 6, 256, 8, 1024
ROWS = 8
OBSERVED, ACTED = 17, 6  # numbers of an observation and of an action (MuJoCo's half-cheetah)
GATO_STEPS = 10  # environment steps a row: 240 tokens with a separator in each
EMBEDDED_STEPS = 128  # environment steps a row where a step is one or two embeddings
WINDOW = 8  # environment steps that our presets look back in acting
IMAGES, TEXT, PIXELS, PATCH = 4, 256, 224, 16  # of a row with images; of an image
LATENTS, RESAMPLER_LAYERS, GATED_HEADS, GATED_SIZE = 64, 6, 8, 64  # OpenFlamingo's, but for the width
VOCABULARY = 3072
RATE, BETAS, DECAY, CLIP = 1e-4, (0.9, 0.95), 0.1, 1.0  # AdamW and the clipping of its gradients
PROMPT, WRITTEN = 256, 64  # tokens that are read and written
GPT2 = {"width": 768, "layers": 12, "heads": 12, "vocabulary": 50257}  # GPT-2's smallest shape
