for (const plane of document.querySelectorAll(".plane")) {
  const slice = plane.querySelector(".slice"), slider = plane.querySelector("input"), number = plane.querySelector("output");
  const { columns, rows, width, height } = slice.dataset, numbers = slice.dataset.numbers.split(",");
  const place = (i, n, side) => ((i * (side + 2) + 1) / (n * (side + 2) - side)) * 100 + "%";
  const show = () => {
    const i = +slider.value;
    for (const layer of slice.querySelectorAll("i"))
      layer.style.backgroundPosition = place(i % columns, +columns, +width) + " " + place(Math.floor(i / columns), +rows, +height);
    number.textContent = numbers[i];
  };
  slider.addEventListener("input", show);
  show(); // a reloaded page keeps the sliders' places
}
const labels = document.querySelector("#labels");
if (labels) {
  const show = () => document.body.classList.toggle("hide", !labels.checked);
  labels.addEventListener("change", show);
  show();
}
