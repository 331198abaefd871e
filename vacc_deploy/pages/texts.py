"""Every text of a page, in English and Chinese: one entry for both.

Names in braces are filled in with figures or names. Sentences that a command made (failures,
notes, findings) are in English and stand under a heading that says so.
"""

from __future__ import annotations

from vacc_deploy.pages.result_texts import AUDIT, LINEARS, SCORES, WORDS

LANGUAGES = ("en", "zh")

_FRAME = {
    "made-by": ("Written by vacc-deploy {version}", "由 vacc-deploy {version} 生成"),
    "footer": (
        "This page is one file. It needs no network and no script, and it has a seal: vacc-deploy "
        "replaces it only if nobody has changed it.",
        "本页为单个文件，无需网络和脚本。"
        "文件末尾带有校验值：只有内容未被改动时，vacc-deploy 才会覆盖它。",
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
    "verify-passed-close": (
        "The deployed weights predict what the float model predicts. A figure misses its limit by "
        "no more than chance can make on a text of this length: see the notes.",
        "部署权重的预测与浮点模型一致。有指标略超限值，但差距未超过该文本长度下的偶然误差，见说明。",
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
    "written-by": ("written by", "写入工具"),
    "libraries": ("libraries", "依赖库"),
    "options": ("options", "选项"),
    "this-tool": ("this page by", "生成本页的工具"),
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
        "The most serious first. Each code is explained in docs/checks.md.",
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
    **SCORES,
    **LINEARS,
    **WORDS,
    **AUDIT,
    **_ORIGIN,
    **_CHECK,
}
