"""The texts of figures and charts, in English and Chinese; ``texts`` has the catalogue."""

from __future__ import annotations

SCORES = {
    "mean-kl": ("Mean KL, float against deployed", "平均 KL（浮点 ‖ 部署）"),
    "kl-error": ("± {error} (standard error)", "± {error}（标准误差）"),
    "limit": ("limit {limit}", "限值 {limit}"),
    "limit-mean": ("limit of the mean: {limit}", "均值限值 {limit}"),
    "no-limit": ("no limit", "无限值"),
    "gauge-kl": (
        "Mean KL in proportion to its limit; the line is the limit.",
        "平均 KL 与限值之比，竖线为限值。",
    ),
    "top1": ("Same most likely token", "首选词元一致率"),
    "gauge-top1": (
        "Share of tokens with the same most likely token; the line is the limit, the right end "
        "100 %.",
        "首选词元一致率，竖线为限值，右端为 100 %。",
    ),
    "top1-of": ("of {tokens} tokens of {text}", "共 {tokens} 个词元，文本 {text}"),
    "perplexity": ("Perplexity, deployed", "困惑度（部署）"),
    "perplexity-float": ("float {float}, change {change}", "浮点 {float}，变化 {change}"),
    "max-kl": ("Largest KL of one token", "单个词元的最大 KL"),
    "nats": ("{value} nats", "{value} nat"),
    "activations": ("Inputs of the deployed linears", "部署模型线性层的输入"),
    "activations-float": ("float32", "float32"),
    "activations-int8": ("rounded to int8, token by token", "逐词元舍入为 int8"),
    "section-kl": ("KL over the tokens", "各词元的 KL 分布"),
    "lead-kl": (
        "KL says for each token how far the prediction of the deployed model is from that of the "
        "float model: 0 is equal. Most tokens should lie far to the left of the limit; a few "
        "far to the right are where the two models see the text differently.",
        "KL 表示部署模型对每个词元的预测与浮点模型相差多少，0 为完全一致。"
        "多数词元应远在限值左侧；少数靠右的词元，是两个模型判断不同之处。",
    ),
    "chart-kl": ("Tokens by their KL", "按 KL 统计的词元数"),
    "about-kl": (
        "Histogram of the KL of {tokens} tokens over powers of ten. Half of them are below "
        "{median}, 99 of 100 below {high}.",
        "{tokens} 个词元的 KL 直方图，横轴为 10 的幂。一半词元低于 {median}，99 % 低于 {high}。",
    ),
    "axis-kl": ("KL of a token, nats", "词元的 KL（nat）"),
    "axis-tokens": ("tokens", "词元数"),
    "bar-kl": (
        "{number} tokens with a KL from {low} to {high}",
        "{number} 个词元的 KL 在 {low} 到 {high} 之间",
    ),
    "bar-kl-first": ("{number} tokens with a KL below {high}", "{number} 个词元的 KL 低于 {high}"),
    "smaller": ("less", "更小"),
    "percentile": ("{share} of the tokens are below", "{share} 的词元低于"),
    "section-layers": ("Error of each layer", "各层误差"),
    "lead-layers": (
        "How far the hidden states of the deployed model are from those of the float model after "
        "each layer, relative to their size. The line at zero is the float model. Errors of "
        "earlier layers are in those of later ones.",
        "每层之后，部署模型的隐藏状态与浮点模型的差异（相对值）。零线为浮点模型。"
        "前面各层的误差会传入后面各层。",
    ),
    "chart-layers": ("Relative error of the hidden states", "隐藏状态的相对误差"),
    "about-layers": (
        "Relative error of the hidden states after each of {layers} layers; the largest is "
        "{largest}, after layer {layer}.",
        "{layers} 层各自输出的隐藏状态相对误差；最大为 {largest}，在第 {layer} 层之后。",
    ),
    "chart-sqnr": ("Signal-to-noise ratio of the hidden states", "隐藏状态的信噪比"),
    "about-sqnr": (
        "Signal-to-noise ratio of the hidden states after each of {layers} layers, in decibels: "
        "the same errors on a logarithmic axis.",
        "{layers} 层各自输出的隐藏状态信噪比（dB），即同一误差的对数表示。",
    ),
    "equal-layers": (
        "The hidden states of all layers are equal.",
        "所有层的隐藏状态完全一致。",
    ),
    "layers-without-number": (
        "Layers whose error is not a number: {number}. Their hidden states hold NaN or infinity.",
        "有 {number} 层的误差不是有效数值：其隐藏状态含有 NaN 或无穷大。",
    ),
    "layer": ("layer", "层"),
    "relative-error": ("relative error", "相对误差"),
    "sqnr": ("SQNR", "SQNR"),
    "float-line": ("float", "浮点"),
    "deployed": ("deployed", "部署"),
    "point-layer": ("layer {layer}: {error}", "第 {layer} 层：{error}"),
    "section-rounding": ("Rounded inputs", "输入舍入"),
    "lead-rounding": (
        "What rounding the inputs of each linear to int8 changes in its outputs, relative to "
        "their size. The weights have no part in it.",
        "将每个线性层的输入舍入为 int8 后，其输出的相对变化；不含权重量化的影响。",
    ),
}

LINEARS = {
    "section-linears": ("Error of each linear", "各线性层误差"),
    "lead-linears": (
        "The error of the outputs of each linear on held-out calibration text. A square is "
        "rounding to nearest, a circle what was kept: where both meet, rounding was kept. Zero is "
        "the float model.",
        "各线性层在留出的校准文本上的输出误差。方块为就近舍入，圆点为最终采用的结果；"
        "两者重合表示采用了舍入。零线为浮点模型。",
    ),
    "no-linears": (
        "The weights were rounded without calibration text, so no error of a single linear was "
        "measured.",
        "权重为无校准文本的直接舍入，因此没有单个线性层的误差测量值。",
    ),
    "about-linear": (
        "Output error of {linear} in {layers} layers: rounding and what was kept.",
        "{linear} 在 {layers} 层中的输出误差：舍入与最终采用。",
    ),
    "about-rounded-inputs": (
        "What rounded inputs change in the outputs of {linear}, in {layers} layers.",
        "{linear} 的输入舍入在 {layers} 层中引起的输出变化。",
    ),
    "kept": ("kept", "采用"),
    "rounding": ("rounding to nearest", "就近舍入"),
    "point-rounding": ("layer {layer}, rounding: {error}", "第 {layer} 层，舍入：{error}"),
    "point-kept": (
        "layer {layer}, kept ({method}): {error}",
        "第 {layer} 层，采用（{method}）：{error}",
    ),
    "output-error": ("output error", "输出误差"),
    "linear": ("linear", "线性层"),
    "method": ("method kept", "采用的方法"),
    "error-rounding": ("error of rounding", "舍入误差"),
    "error-gptq": ("error of GPTQ", "GPTQ 误差"),
    "section-scales": ("Scales and saturation", "缩放系数与饱和"),
    "lead-scales": (
        "Each row of a weight has one scale. Calibration may make a scale smaller than "
        "absmax / 127; codes beyond ±127 are then cut. A row without a code of ±127 gets one, so "
        "that the compiler finds the same scale again.",
        "权重的每一行有一个缩放系数。校准可取小于 absmax / 127 的系数，超出 ±127 的码会被截断。"
        "若一行没有 ±127 的码，则补上一个，使编译器能还原同一系数。",
    ),
    "not-counted": (
        "Without calibration a scale is absmax / 127, and cut codes are not counted.",
        "无校准时缩放系数为 absmax / 127，不统计被截断的码。",
    ),
    "by-gptq": ("kept by GPTQ", "采用 GPTQ"),
    "by-rounding": ("kept by rounding", "采用舍入"),
    "saturated": ("codes cut at ±127", "截断到 ±127 的码"),
    "pinned": ("rows with a code set to ±127", "补 ±127 的行"),
    "shrink": ("scales below absmax / 127, mean", "系数低于 absmax / 127 的平均幅度"),
    "dampening": ("dampening", "阻尼"),
    "mean-ratio": ("Error of GPTQ relative to rounding", "GPTQ 误差与舍入误差之比"),
    "mean-ratio-of": (
        "mean over the linears that were compared, on held-out text",
        "在留出文本上对参与比较的线性层取平均",
    ),
    "linears-kept": ("Linears kept by GPTQ", "采用 GPTQ 的线性层"),
    "linears-of": ("of {number}; the others by rounding", "共 {number} 个，其余采用舍入"),
    "size": ("Weights", "权重大小"),
    "size-from": ("from {bytes}", "原为 {bytes}"),
    "seconds": ("Time", "用时"),
    "peak-memory": ("Peak memory", "内存峰值"),
    "seconds-unit": ("{seconds} s", "{seconds} 秒"),
}

WORDS = {
    "section-words": ("Where the two models differ most", "两个模型差异最大之处"),
    "lead-words": (
        "The tokens with the largest KL, framed, in their text. The colour and the line below a "
        "token say how large its KL is. A token that stands in an earlier passage is not shown "
        "again.",
        "KL 最大的词元（加框）及其上下文。底色与下划线表示该词元 KL 的大小。"
        "已在前面片段中出现的词元不再重复。",
    ),
    "no-words": (
        "The words cannot be shown: {reason}",
        "无法显示文本：{reason}",
    ),
    "word-kl": ("KL {kl} nats", "KL {kl} nat"),
    "word-same": ("both expect {token}", "两个模型均预测 {token}"),
    "word-other": (
        "float expects {float}, deployed expects {deployed}",
        "浮点预测 {float}，部署预测 {deployed}",
    ),
    "word-part": ("token {id}, a part of a character", "词元 {id}（字符的一部分）"),
    "word-place": ("window {row}, token {at}", "窗口 {row}，第 {at} 个词元"),
    "heat-0": ("below {high}", "低于 {high}"),
    "heat-4": ("{low} and more", "{low} 及以上"),
    "heat": ("{low} to {high}", "{low} 至 {high}"),
    "heat-title": ("KL in nats", "KL（nat）"),
}

AUDIT = {
    "section-audit": ("Activations and the float16 range", "激活值与 float16 范围"),
    "lead-audit": (
        "The largest absolute value of each kind of activation in each layer. float16 ends at "
        "65,504: what comes near it may overflow on the card. The step of bfloat16 is the distance "
        "of two neighbouring numbers at that size.",
        "各层中每类激活值的最大绝对值。float16 的上限为 65,504，接近该值的激活在卡上可能溢出。"
        "bfloat16 步长为该量级上相邻两个数的间距。",
    ),
    "audit-safe": (
        "Nothing comes near the end of the float16 range.",
        "没有激活值接近 float16 上限。",
    ),
    "audit-risk": ("At risk:", "存在风险："),
    "more-risks": ("{number} more", "另外 {number} 项"),
    "about-audit": (
        "Largest absolute value of {name} in each layer, on a logarithmic axis; the line is the "
        "end of the float16 range.",
        "各层 {name} 的最大绝对值，纵轴为对数刻度；横线为 float16 上限。",
    ),
    "float16-end": ("float16: 65,504", "float16：65,504"),
    "max-abs": ("largest absolute value", "最大绝对值"),
    "rms": ("root mean square", "均方根"),
    "percent": ("per cent of float16's range", "占 float16 范围的百分比"),
    "bfloat16-step": ("step of bfloat16", "bfloat16 步长"),
    "stage": ("stage", "阶段"),
    "tensor": ("tensor", "张量"),
    "section-tokenizer": ("Tokenizer", "分词器"),
    "lead-tokenizer": (
        "Whether the tokenizer gives the same ids wherever the model is served.",
        "分词器在各种部署环境下是否给出相同的词元编号。",
    ),
    "tokens-held": (
        "It does: tokenizer.json and the installed transformers give the same ids, and every text "
        "comes back from its ids.",
        "是的：tokenizer.json 与已安装的 transformers 给出相同的词元编号，"
        "且每段文本都能由编号还原。",
    ),
    "tokens-differ": (
        "Not in every case: see the table, and run vacc-deploy check, which says what to do.",
        "并非全部相同：请看下表，并运行 vacc-deploy check，它会说明如何处理。",
    ),
    "tokens-library": ("version of transformers", "transformers 版本"),
    "tokens-class": ("class that it chose", "它选用的类"),
    "tokens-bos": ("id of the BOS token", "BOS 词元编号"),
    "tokens-error": ("why it gives no ids", "未给出编号的原因"),
    "tokens-probe": ("text", "文本"),
    "tokens-count": ("tokens", "词元数"),
    "tokens-library-ids": ("ids of transformers", "transformers 的编号"),
    "tokens-back": ("text from its ids", "由编号还原的文本"),
    "tokens-same": ("the same", "相同"),
    "tokens-other": ("different", "不同"),
    "tokens-composed": ("the same for composed letters", "组合字符后相同"),
    "tokens-none": ("none", "无"),
    "tokens-exact": ("the same", "相同"),
    "tokens-normalized": ("after the normalizer", "经规范化后相同"),
    "tokens-lost": ("another text", "不同"),
}
