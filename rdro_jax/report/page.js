"use strict";
const charts = JSON.parse(document.getElementById("charts").textContent);
const drawn = charts.map((chart) => Bokeh.embed.embed_item(chart));
Promise.all(drawn).then((managers) => {
  document.documentElement.dataset.charts = String(managers.length);
});
for (const button of document.querySelectorAll("button[data-chart]")) {
  button.addEventListener("click", async () => {
    const number = Number(button.dataset.chart), form = button.dataset.form;
    const [view] = [...(await drawn[number])];
    const blob = await view.export(form).to_blob();
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = `chart-${number}.${form}`;
    link.click();
  });
}
