"""The stylesheet of the report."""

from __future__ import annotations

STYLE = """
:root{--paper:#fbfaf8;--card:#fff;--ink:#1d1d1b;--soft:#5f5e59;--rule:#e4e2dc;--grid:#eceae4;
--blue:#1f6fb2;--orange:#c65d00;--green:#2b8052;--violet:#7a4fb5;--teal:#0f7f8c;--rose:#b83a6b;--ochre:#8f6a00;
--grey:#8b8a84;
--error:#a8261c;--warning:#8a5a00;--info:#4a5a68;--healthy:#1e6b45;--unknown:#4f5963;--bad:#c5352a;
--sans:Inter,"Helvetica Neue",Arial,"Liberation Sans",sans-serif;
--mono:ui-monospace,"SF Mono",Menlo,Consolas,"Liberation Mono",monospace}
@media (prefers-color-scheme:dark){:root{--paper:#131416;--card:#1a1c1f;--ink:#ebe9e4;--soft:#a5a39c;--rule:#2d3034;
--grid:#26292d;
--blue:#62aef0;--orange:#f2994a;--green:#5fc492;--violet:#b79af0;--teal:#4cc3d0;--rose:#ee86ad;--ochre:#d9b44a;
--grey:#8d8f94;
--error:#ff8a7e;--warning:#f0b955;--info:#a9b8c6;--bad:#ff6b5e}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.55 var(--sans);font-feature-settings:"cv05","ss03"}
h1,h2,h3,p,dl,dd,ol,ul,figure{margin:0;padding:0}ol,ul{list-style:none}
.verdict{color:#fff;padding:44px 0 40px;print-color-adjust:exact;-webkit-print-color-adjust:exact}
.verdict.error{background:#a8261c}.verdict.warning{background:#8a5a00}.verdict.healthy{background:#1e6b45}
.verdict.unknown{background:#4f5963}
.inner,main,footer{max-width:1160px;margin:0 auto}
.inner{padding:0 28px}
.over{font-size:13px;letter-spacing:.02em;opacity:.86}
h1{font-size:44px;line-height:1.1;font-weight:680;letter-spacing:-.022em;margin:6px 0 10px}
.lead{font-size:19px;line-height:1.4;max-width:46em;text-wrap:balance}
main{padding:0 28px}
.facts{display:flex;flex-wrap:wrap;gap:4px 40px;padding:22px 0 20px;border-bottom:1px solid var(--rule)}
.facts dt{font-size:12.5px;color:var(--soft)}
.facts dd{font-size:17px;font-weight:560;font-variant-numeric:tabular-nums}
.findings{padding:30px 0 6px}
.card{display:grid;grid-template-columns:40px 1fr;gap:0 14px;padding:24px 0;border-bottom:1px solid var(--rule)}
.card:first-child{padding-top:0}.card:last-child{border-bottom:0}
.number{width:32px;height:32px;border-radius:50%;display:grid;place-items:center;font-weight:650;color:var(--paper);
background:var(--tone);font-variant-numeric:tabular-nums}
.card.error,.mark.error{--tone:var(--error)}.card.warning,.mark.warning{--tone:var(--warning)}
.card.info,.mark.info{--tone:var(--info)}
.code{font-size:13px;color:var(--soft)}.code strong{color:var(--tone);font-weight:650}
.code code{font:12.5px var(--mono);color:var(--ink);margin:0 6px}
.card h2{font-size:23px;line-height:1.25;letter-spacing:-.012em;font-weight:640;margin:2px 0 14px;max-width:34em;
text-wrap:balance}
.evidence{display:flex;flex-wrap:wrap;gap:10px 32px;margin:0 0 16px}
.evidence dt{font-size:12.5px;color:var(--soft)}
.evidence dd{font-size:20px;font-weight:560;font-variant-numeric:tabular-nums;letter-spacing:-.01em}
.told{display:grid;grid-template-columns:76px 1fr;gap:6px 12px;max-width:60em}.told dt{color:var(--soft)}
.told code{font:13px var(--mono)}
section{padding:34px 0 0}
h2.table{font-size:19px;font-weight:640;letter-spacing:-.01em;margin:0 0 14px}
h2.table span{font-weight:400;color:var(--soft);margin-left:6px}
.grid2{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,420px),1fr));gap:18px}
.wide{grid-column:1/-1}
figure{background:var(--card);border:1px solid var(--rule);border-radius:8px;padding:16px 16px 8px;break-inside:avoid}
h3{font-size:15px;font-weight:620}
figcaption p{font-size:13px;color:var(--soft)}
.legend{display:flex;flex-wrap:wrap;gap:2px 18px;margin:8px 0 6px;font-size:13px;color:var(--soft)}
.legend b{color:var(--ink);font-weight:600;font-variant-numeric:tabular-nums;margin-left:2px}
.legend i{display:inline-block;width:14px;height:0;border-top:3px solid var(--tone);border-radius:2px;
margin-right:7px;vertical-align:middle}
.legend i.dashed{border-top-style:dotted}
.legend i.block{height:10px;width:10px;border:0;background:var(--tone);opacity:.8}
svg{display:block;width:100%;height:auto;font-family:var(--sans);overflow:visible}
.blue{--tone:var(--blue)}.orange{--tone:var(--orange)}.green{--tone:var(--green)}.violet{--tone:var(--violet)}
.teal{--tone:var(--teal)}.rose{--tone:var(--rose)}.ochre{--tone:var(--ochre)}.grey{--tone:var(--grey)}
.line{fill:none;stroke:var(--tone);stroke-width:1.8;stroke-linejoin:round;stroke-linecap:round}
.line.dashed{stroke-dasharray:2 4}
.dot{fill:var(--tone)}.band{fill:var(--tone);opacity:.72}.envelope{fill:var(--tone);opacity:.16}
.grid{stroke:var(--grid)}.axis{stroke:var(--rule)}
.tick{fill:var(--soft);font-size:11px;font-variant-numeric:tabular-nums}
.rug{fill:var(--bad)}
.mark line{stroke:var(--tone);stroke-width:1.2;stroke-dasharray:3 3}.mark circle{fill:var(--tone)}
.mark text{fill:var(--card);font-size:10.5px;font-weight:700}
.strip rect{fill:transparent}.strip line{stroke:none}.strip:hover line{stroke:var(--soft);stroke-width:1}
footer{padding:36px 28px 48px;font-size:13px;color:var(--soft);}
@media (max-width:640px){h1{font-size:34px}.verdict{padding:30px 0 28px}.inner,main{padding:0 20px}
footer{padding:28px 20px}
.card{grid-template-columns:1fr}.number{margin-bottom:8px}.told{grid-template-columns:1fr;gap:0}
.told dd{margin-bottom:8px}
.wide{overflow-x:auto}.wide svg{width:800px}
}
@media print{:root{--paper:#fff;--card:#fff;--ink:#000;--soft:#444;--rule:#ccc;--grid:#e5e5e5}
body{font-size:11pt}.verdict{padding:18px 0}.inner,main{padding:0 22px}section,.card{break-inside:auto}
.card,figure{break-inside:avoid}
.grid2{grid-template-columns:1fr 1fr}h2.table{break-after:avoid}.strip{display:none}}
""".strip()
