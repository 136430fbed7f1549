// Images of files, checked here, so that a broken one is told at once and never sent.
const SENDABLE = ["image/png", "image/jpeg", "image/webp", "image/gif"];
const SIDE = 1024; // pixels: larger images are made smaller before they are sent

// The data URI of an image file; throws an Error for the user.
export async function readPicture(file, limits) {
  const name = file.name || "The image";
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Error(name + " is no image that can be read. It was left out.");
  }
  try {
    const fits = file.size <= limits.image_bytes && bitmap.width * bitmap.height <= limits.pixels;
    if (fits && SENDABLE.includes(file.type)) return await dataUri(file);
    return smaller(bitmap);
  } finally {
    bitmap.close();
  }
}

function dataUri(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.replace("data:image/jpg;", "data:image/jpeg;"));
    reader.onerror = () => reject(new Error(file.name + " cannot be read. It was left out."));
    reader.readAsDataURL(file);
  });
}

function smaller(bitmap) {
  const scale = Math.min(1, SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff"; // a transparent ground is white, as the server reads it
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/jpeg", 0.92);
}
