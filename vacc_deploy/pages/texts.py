"""Every text of a page, in English and Chinese: one entry for both.

Names in braces are filled in with figures or names. Sentences that a command made (failures,
notes, findings) are in English and stand under a heading that says so.
"""

from __future__ import annotations

LANGUAGES = ("en", "zh")

_FRAME = {
    "made-by": ("Written by vacc-deploy {version}", "由 vacc-deploy {version} 生成"),
    "footer": (
        "This page is one file. It needs no network and no script, and it has a seal: vacc-deploy "
        "replaces it only if nobody has changed it.",
        "本页为单个文件，无需网络和脚本。"
        "文件末尾带有校验封印：只有内容未被改动时，vacc-deploy 才会覆盖它。",
    ),
    "contents": ("Contents", "目录"),
    "kicker-verify": ("Comparison with the float model", "与浮点模型的对比"),
    "kicker-quantize": ("Quantization to int8", "int8 量化"),
    "kicker-check": ("Check of the files", "文件检查"),
    "title-verify": ("{model}: comparison with the float model", "{model}：与浮点模型的对比"),
    "title-quantize": ("{model}: quantization to int8", "{model}：int8 量化"),
    "title-check": ("Check of the files", "文件检查"),
    "in-english": (
        "What the command said:",
        "命令给出的说明（英文原文）：",
    ),
    "table": ("Show all figures as a table", "以表格显示全部数值"),
    "more": ("{number} more are not shown.", "另有 {number} 项未显示。"),
}

_VERDICTS = {
    "passed": ("Passed", "通过"),
    "failed": ("Failed", "未通过"),
    "not-judged": ("Not judged", "未评判"),
    "written": ("Written", "已写入"),
    "verify-passed": (
        "The deployed weights predict what the float model predicts, within the limits.",
        "部署权重的预测与浮点模型一致，各项指标均在限值之内。",
    ),
    "verify-failed": (
        "The comparison does not meet what is asked of it. The reasons:",
        "对比结果不满足要求，原因如下：",
    ),
    "verify-damaged": (
        "The files are not those that were written, so nothing was compared. The reasons:",
        "目录中的文件与写入时不一致，因此未进行对比。原因如下：",
    ),
    "verify-open": (
        "No limits were set. The figures are shown without a verdict.",
        "未设置限值，以下数值仅供查看，不作评判。",
    ),
    "quantize-written": (
        "The int8 weights are in place. This page says how well each linear was approximated; "
        "whether the model still predicts the same is for verify to judge.",
        "int8 权重已写入。本页说明各线性层的近似精度；模型的预测是否保持一致，由 verify 评判。",
    ),
    "quantize-again": (
        "The output was finished before. The hashes of all its files were compared again and are "
        "right.",
        "该输出此前已完成；本次重新核对了全部文件的哈希，结果一致。",
    ),
    "check-passed": (
        "No error was found in the files.",
        "未在文件中发现错误。",
    ),
    "check-strict": (
        "There are warnings, and none are allowed (--strict).",
        "存在警告，而本次检查不允许警告（--strict）。",
    ),
    "check-failed": (
        "Errors were found. Mend them before the compiler runs.",
        "发现错误。请在运行编译器之前修正。",
    ),
}

_SCORES = {
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

_LINEARS = {
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

_WORDS = {
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

_AUDIT = {
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
}

_ORIGIN = {
    "section-calibration": ("Calibration text", "校准文本"),
    "lead-calibration": (
        "What the weights were calibrated on. A file is known by its SHA-256.",
        "权重校准所用的文本；文件以 SHA-256 标识。",
    ),
    "no-calibration": (
        "No text: every weight was rounded to the nearest int8 code.",
        "未使用文本：每个权重直接舍入到最近的 int8 码。",
    ),
    "source": ("source", "来源"),
    "file": ("file", "文件"),
    "rows": ("rows", "行数"),
    "held-out": ("held out", "留出行数"),
    "tokens": ("tokens", "词元数"),
    "documents": ("documents used", "使用的文档"),
    "calibration-total": (
        "{tokens} tokens in {rows} rows of {length}, of which {held} were held out to choose "
        "between GPTQ and rounding.",
        "共 {tokens} 个词元，{rows} 行，每行 {length} 个；"
        "其中 {held} 行留出，用于在 GPTQ 与舍入之间选择。",
    ),
    "section-versions": ("Versions, options and files", "版本、选项与文件"),
    "lead-versions": (
        "From the manifest of the directory, vacc_deploy.json. The same inputs, options and "
        "versions give the same bytes.",
        "摘自目录清单 vacc_deploy.json。相同的输入、选项与版本得到逐字节相同的输出。",
    ),
    "no-manifest": (
        "The directory has no manifest, so its origin is not known.",
        "该目录没有清单，来源未知。",
    ),
    "unreadable": ("{file} cannot be shown: {reason}", "无法显示 {file}：{reason}"),
    "directory": ("directory", "目录"),
    "reference": ("float model", "浮点模型"),
    "written-by": ("written by", "写入者"),
    "libraries": ("libraries", "依赖库"),
    "options": ("options", "选项"),
    "this-tool": ("this page by", "本页由"),
    "files": ("Files and their hashes", "文件及其哈希"),
    "bytes": ("bytes", "字节"),
    "hash": ("SHA-256", "SHA-256"),
    "header-hash": (
        "{hash} (of the header: the file is linked)",
        "{hash}（仅文件头：该文件为链接）",
    ),
    "section-notes": ("Notes", "说明"),
    "section-commands": ("How to get the same again", "复现方法"),
    "lead-commands": (
        "Run in the directory in which the first run was started. Words in angle brackets are not "
        "written down in the output: fill them in.",
        "在首次运行时的工作目录中执行。尖括号中的内容未记录在输出中，请自行填写。",
    ),
    "command-wrote": ("The directory was written by", "写入该目录的命令"),
    "command-page": ("This page was written by", "生成本页的命令"),
}

_CHECK = {
    "section-targets": ("What was checked", "检查对象"),
    "kind": ("kind", "类型"),
    "verdict": ("verdict", "结论"),
    "target": ("checked with", "所属对象"),
    "errors": ("errors", "错误"),
    "warnings": ("warnings", "警告"),
    "severity-error": ("error", "错误"),
    "severity-warning": ("warning", "警告"),
    "severity-note": ("note", "提示"),
    "notes": ("notes", "提示"),
    "section-findings": ("Findings", "检查结果"),
    "lead-findings": (
        "The gravest first. Each code is explained in docs/checks.md.",
        "按严重程度排列。各代码的说明见 docs/checks.md。",
    ),
    "no-findings": ("Nothing to report.", "没有需要报告的内容。"),
    "where": ("where", "位置"),
    "got": ("got", "实际"),
    "expected": ("expected", "期望"),
    "why": ("why it matters", "影响"),
    "fix": ("what to do", "处理方法"),
}

TEXTS: dict[str, tuple[str, str]] = {
    **_FRAME,
    **_VERDICTS,
    **_SCORES,
    **_LINEARS,
    **_WORDS,
    **_AUDIT,
    **_ORIGIN,
    **_CHECK,
}
