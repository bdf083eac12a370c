// Only in the page that is served: its service worker, and the button that installs it as an app.

const news = document.getElementById("news");
const button = document.getElementById("install");
let offer = null; // the browser's, until it was used

addEventListener("beforeinstallprompt", (event) => {
  event.preventDefault();
  offer = event;
  button.hidden = false;
});
addEventListener("appinstalled", () => (button.hidden = true));
button.addEventListener("click", () => {
  offer?.prompt();
  offer = null;
  button.hidden = true;
});

if ("serviceWorker" in navigator) {
  let isUpdate = navigator.serviceWorker.controller !== null;
  navigator.serviceWorker.addEventListener("controllerchange", () => {
    news.textContent = isUpdate
      ? "A newer version of this page is here. Load the page again to use it."
      : "This page now works offline, too.";
    isUpdate = true;
  });
  navigator.serviceWorker.register("sw.js").catch((error) => {
    news.textContent = `This page cannot be kept for use offline (${error.message}).`;
  });
}
